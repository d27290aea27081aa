//! How the node proves which it is, and how it knows the server while it knows nothing else.
//!
//! - The server is known by the stored bundle, by the bootstrap bundle, or by its root's fingerprint; there is no way
//!   to do without. The last two are needed only as long as none is stored.
//! - A token file, a service account's token and a node's certificate are read at each attempt: whoever replaces them need not
//!   restart the agent.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use spiffe::bundle::Bundle;
use spiffe::entry::KeyType;
use spiffe::id::TrustDomain;
use spiffe::mtls::{self, CurrentBundles, Peers};
use spiffe::time::Clock;
use zeroize::Zeroizing;

use super::x509pop::Prover;
use super::{NodeError, NodeIdentity, folder, fresh_key, k8s_psat};
use crate::client::{self, Attestation, ClientError};
use crate::config::{Address, Attest, Bootstrap, Token};

/// What an attestation needs.
#[derive(Clone, Debug)]
pub struct Attestor {
    /// The agent's.
    pub trust_domain: TrustDomain,
    /// Tried in turn.
    pub servers: Vec<Address>,
    /// How the server is known before a bundle is stored.
    pub bootstrap: Option<Bootstrap>,
    /// How the node proves which it is.
    pub method: Attest,
    /// Of the agent's own key.
    pub key_type: KeyType,
    /// For lifetimes.
    pub clock: Arc<dyn Clock>,
}

enum Proof {
    Token(Zeroizing<Vec<u8>>),
    Certificate(Prover),
    ServiceAccount(Zeroizing<Vec<u8>>),
}

impl Attestor {
    /// Has the node attested: a fresh key and its SVID, verified, and the bundle that goes with it. `stored` is the
    /// bundle of an earlier time: newer than the bootstrap's, if there is one.
    pub async fn attest(&self, stored: Option<&Bundle>) -> Result<(NodeIdentity, Bundle), NodeError> {
        let proof = self.proof()?;
        let (key, csr) = fresh_key(self.key_type)?;
        let mut result = Err(NodeError::Client(ClientError::Closed));
        for tls in self.trusts(stored)? {
            let (attestor, evidence) = match &proof {
                Proof::Token(token) => ("join_token", token.to_vec()),
                Proof::Certificate(prover) => ("x509pop", prover.evidence()),
                Proof::ServiceAccount(evidence) => ("k8s_psat", evidence.to_vec()),
            };
            let answer = |challenge: &[u8]| match &proof {
                Proof::Token(_) => Err("the server answered a join token with a challenge".to_owned()),
                Proof::Certificate(prover) => prover.answer(challenge, &csr),
                Proof::ServiceAccount(_) => {
                    Err("the server answered a service account's token with a challenge".to_owned())
                }
            };
            let attestation = Attestation { attestor, evidence, csr: csr.clone() };
            result =
                client::attest(&self.servers, tls, attestation, answer).await.map_err(|error| proof.explain(error));
            // Another way to know the server may reach it.
            if !matches!(result, Err(NodeError::Client(ClientError::Unreachable(_)))) {
                break;
            }
        }
        let (svid, bundle) = result?;
        if !svid.id().is_agent() || bundle.trust_domain() != &self.trust_domain {
            return Err(NodeError::NotAnAgent(svid.id().to_string()));
        }
        svid.key_fits(&key.0)?;
        let svid = svid.verify(&bundle, self.clock.now())?.into_svid();
        Ok((NodeIdentity { svid, key }, bundle))
    }

    fn proof(&self) -> Result<Proof, NodeError> {
        match &self.method {
            Attest::JoinToken(None) => Err(NodeError::NoToken),
            Attest::JoinToken(Some(Token::Text(token))) => {
                Ok(Proof::Token(Zeroizing::new(token.reveal().as_bytes().to_vec())))
            }
            Attest::JoinToken(Some(Token::File(path))) => {
                let content = folder::read(path)?.ok_or(NodeError::NoToken)?;
                Ok(Proof::Token(Zeroizing::new(content.trim_ascii().to_vec())))
            }
            Attest::X509Pop { certificates, private_key } => {
                Ok(Proof::Certificate(Prover::load(certificates, private_key)?))
            }
            Attest::K8sPsat { cluster, token_path } => {
                Ok(Proof::ServiceAccount(k8s_psat::evidence(cluster, token_path)?))
            }
        }
    }

    /// The ways to know the server, in the order in which they are tried.
    fn trusts(&self, stored: Option<&Bundle>) -> Result<Vec<ClientConfig>, NodeError> {
        let peers = || Peers::Ids(vec![self.trust_domain.server_id()]);
        let by_bundle = |bundle: &Bundle| {
            mtls::client_config(None, CurrentBundles::new([bundle.clone()]), peers(), self.clock.clone())
        };
        let mut trusts = Vec::new();
        if let Some(bundle) = stored {
            trusts.push(by_bundle(bundle).map_err(ClientError::from)?);
        }
        let bootstrap = match &self.bootstrap {
            Some(Bootstrap::Bundle(path)) => Some(by_bundle(&read_bundle(path, &self.trust_domain)?)),
            Some(Bootstrap::Fingerprint(fingerprint)) => {
                Some(mtls::client_config_by_fingerprint(*fingerprint, peers(), self.clock.clone()))
            }
            None => None,
        };
        trusts.extend(bootstrap.transpose().map_err(ClientError::from)?);
        if trusts.is_empty() { Err(NodeError::NoBootstrap) } else { Ok(trusts) }
    }
}

impl Proof {
    fn explain(&self, error: ClientError) -> NodeError {
        match self {
            _ if !error.is_refusal() => error.into(),
            Self::Token(_) => NodeError::Token(error.words()),
            Self::Certificate(_) | Self::ServiceAccount(_) => NodeError::Refused(error.words()),
        }
    }
}

/// Reads a `bootstrap_bundle`: SPIFFE JWKS where it begins with a brace, else PEM.
pub fn read_bundle(path: &Path, trust_domain: &TrustDomain) -> Result<Bundle, NodeError> {
    let missing = || NodeError::Content {
        path: path.to_owned(),
        why:
            "there is no such file: bootstrap_bundle has the trust domain's roots in it, which \"chancery bundle show \
              --format pem\" prints on the server"
                .into(),
    };
    let document = folder::read(path)?.ok_or_else(missing)?;
    let parsed = if document.trim_ascii_start().starts_with(b"{") {
        Bundle::from_jwks(trust_domain.clone(), &document)
    } else {
        Bundle::from_pem(trust_domain.clone(), &document)
    };
    let bundle = parsed.map_err(|source| NodeError::Bundle { path: path.to_owned(), source })?;
    if bundle.x509_authorities().is_empty() {
        return Err(NodeError::Content { path: path.to_owned(), why: "there is no X.509 root in it".into() });
    }
    Ok(bundle)
}

#[cfg(test)]
mod tests;
