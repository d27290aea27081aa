//! The keys and certificates of a cluster, as files in its folder: one CA for the API server and its callers, and the key
//! that signs service-account tokens.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use serde_json::{Value, json};
use spiffe::crypto::jws::Signer;

pub(super) const CA: &str = "ca.pem";
pub(super) const SERVER_CERTIFICATE: &str = "apiserver.pem";
pub(super) const SERVER_KEY: &str = "apiserver.key";
pub(super) const ACCOUNT_KEY: &str = "service-accounts.key";
pub(super) const ACCOUNT_PUBLIC_KEY: &str = "service-accounts.pub";
pub(super) const ADMIN: &str = "admin.kubeconfig";

/// What is needed of them after the start.
pub(super) struct Keys {
    ca: CertifiedIssuer<'static, KeyPair>,
    account: KeyPair,
}

impl Keys {
    /// Makes them, and writes what the API server reads.
    pub(super) fn write(folder: &Path) -> Self {
        let (mut params, account) = (named("cluster", None), KeyPair::generate().expect("a key"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
        let mut server = CertificateParams::new(["127.0.0.1".into(), "kubernetes.default.svc".into()]).expect("names");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let keys = Self { ca, account };
        let (certificate, key) = keys.sign(&server);
        let files = [
            (CA, keys.ca.pem()),
            (SERVER_CERTIFICATE, certificate),
            (SERVER_KEY, key),
            (ACCOUNT_KEY, keys.account.serialize_pem()),
            (ACCOUNT_PUBLIC_KEY, keys.account.public_key_pem()),
        ];
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("a file can be written");
        }
        keys
    }

    /// The kubeconfig file of an administrator, who comes with a certificate.
    pub(super) fn write_admin_kubeconfig(&self, folder: &Path, url: &str) {
        let mut params = named("admin", Some("system:masters"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = self.sign(&params);
        for (name, text) in [("admin.pem", certificate), ("admin.key", key)] {
            fs::write(folder.join(name), text).expect("a file can be written");
        }
        let user = json!({ "client-certificate": folder.join("admin.pem"), "client-key": folder.join("admin.key") });
        write_kubeconfig(folder, ADMIN, (url, &user));
    }

    /// Signs as the API server signs tokens.
    pub(super) fn account_signer(&self) -> Signer {
        Signer::from_pkcs8(self.account.serialized_der()).expect("a key of ours")
    }

    fn sign(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.ca).expect("a certificate").pem(), key.serialize_pem())
    }
}

fn named(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params
}

/// A kubeconfig file (JSON is YAML) for the cluster whose files are in `folder`: where it is, and who comes.
pub(super) fn write_kubeconfig(folder: &Path, name: &str, (url, user): (&str, &Value)) {
    let cluster = json!({ "server": url, "certificate-authority": folder.join(CA) });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": cluster }],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "current-context": "test",
    });
    fs::write(folder.join(name), config.to_string()).expect("a file can be written");
}
