use std::path::Path;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::x509_svid::X509Svid;

use super::*;
use crate::deliver::test_material::{HOUR, NOW, THREE, delivery, material, token};

fn files(rest: &str, material: &Material) -> Result<Rendered, String> {
    let delivery = delivery(Path::new("/d"), rest);
    let inputs = Inputs::read(delivery.inputs()).unwrap();
    let rendered = render(Of { delivery: &delivery, material, inputs: &inputs, now: NOW });
    rendered.map_err(|error| error.to_string())
}

fn file(kind: &str, name: &str) -> String {
    format!("[[deliver.file]]\nkind = '{kind}'\nname = '{name}'\n")
}

fn text(file: &RenderedFile) -> &str {
    std::str::from_utf8(&file.content).unwrap()
}

#[test]
fn chain_key_and_bundle_are_read_as_they_were() {
    let material = material();
    let rendered = files(&format!("{THREE}{}", file("combined", "all.pem")), &material).unwrap();
    let names: Vec<&str> = rendered.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["tls.crt", "tls.key", "ca.crt", "all.pem"]);
    let chain = |text: &[u8]| CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().unwrap();
    let [crt, key, ca, all] = &rendered.files[..] else { panic!() };
    assert_eq!(X509Svid::parse(chain(&crt.content)).unwrap(), material.identity.svid);
    let read = PrivatePkcs8KeyDer::from_pem_slice(&key.content).unwrap();
    assert_eq!(read.secret_pkcs8_der(), &material.identity.key[..]);
    assert_eq!(chain(&ca.content), material.identity.roots[&material.id().trust_domain()]);
    assert_eq!(text(all), format!("{}{}", text(crt), text(key)));
    assert!(text(all).lines().all(|line| line.len() <= 64 && !line.is_empty()));
    assert!(!format!("{rendered:?}").contains("BEGIN"));
}

#[test]
fn federated_bundles_are_a_file_for_each_trust_domain() {
    let federated = "[[deliver.file]]\nkind = 'bundle'\nname = 'ca-{{trust_domain}}.pem'\nfederated = true\n";
    let rendered = files(federated, &material()).unwrap();
    let names: Vec<&str> = rendered.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["ca-example.org.pem", "ca-other.org.pem"]);
    assert_ne!(text(&rendered.files[0]), text(&rendered.files[1]));
}

#[test]
fn tokens_and_keys_are_written_as_they_are() {
    let mut material = material();
    let wanted = "[[deliver.file]]\nkind = 'jwt'\nname = 'token'\naudience = 'db'\n";
    assert!(files(wanted, &material).unwrap_err().contains("no JWT-SVID for db yet"));
    let audience = Audience::parse(&["db".to_owned()]).unwrap();
    let token_of = |now| token(&audience, now);
    material.tokens.insert(audience.clone(), token_of(NOW));
    let rendered = files(&format!("{wanted}{}", file("jwks", "keys.json")), &material).unwrap();
    assert_eq!(text(&rendered.files[0]), material.tokens[&audience].token());
    assert_eq!(text(&rendered.files[1]), r#"{"keys":[]}"#);
    assert_eq!((rendered.files[0].mode, rendered.files[1].mode), (0o600, 0o644));
    material.tokens.insert(audience.clone(), token_of(NOW.minus(2 * HOUR)));
    assert!(files(wanted, &material).unwrap_err().contains("the JWT-SVID for db has expired"));
}

#[test]
fn openssl_reads_the_pkcs12_file() {
    let (place, material) = (tempfile::TempDir::new().unwrap(), material());
    let (password, store) = (place.path().join("password"), place.path().join("store.p12"));
    let wanted = format!("[[deliver.file]]\nkind = 'pkcs12'\nname = 's'\npassword_file = '{}'\n", password.display());
    std::fs::write(&password, "\n").unwrap();
    assert!(files(&wanted, &material).unwrap_err().contains("has no password in its first line"));
    std::fs::write(&password, "correct horse\nbattery\n").unwrap();
    let rendered = files(&wanted, &material).unwrap();
    assert_eq!(rendered.files[0].mode, 0o600);
    std::fs::write(&store, &rendered.files[0].content).unwrap();
    let openssl = |password: &str| {
        let mut command = std::process::Command::new("openssl");
        command.args(["pkcs12", "-info", "-nodes", "-passin", &format!("pass:{password}"), "-in"]).arg(&store);
        command.output().expect("this test needs openssl")
    };
    assert!(!openssl("wrong").status.success());
    let output = openssl("correct horse");
    let (out, info) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{info}");
    assert!(info.contains("AES-256-CBC") && info.contains("MAC: sha256") && !info.contains("RC2"), "{info}");
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(out.as_bytes()).collect::<Result<_, _>>().unwrap();
    let expected = [material.identity.svid.chain(), material.identity.own_roots()].concat();
    assert_eq!(certificates.len(), expected.len());
    assert!(expected.iter().all(|der| certificates.contains(der)));
    let key = PrivatePkcs8KeyDer::from_pem_slice(out.as_bytes()).unwrap();
    material.identity.svid.key_fits(key.secret_pkcs8_der()).unwrap();
}

#[test]
fn a_declarative_config_of_kong_keeps_what_is_its_own() {
    let (place, material) = (tempfile::TempDir::new().unwrap(), material());
    let base = place.path().join("kong.yml");
    let wanted = format!(
        "[[deliver.file]]\nkind = 'kong_file'\nname = 'kong.yml'\nbase = '{}'\nsnis = ['a.example']\nservices = \
         ['billing']\n",
        base.display()
    );
    for (text, words) in [
        ("a: [", "it is no YAML"),
        ("- a", "no mapping at its top"),
        ("services: []", "has no service \"billing\""),
        ("certificates: 5", "certificates in it is no list"),
    ] {
        std::fs::write(&base, text).unwrap();
        let error = files(&wanted, &material).unwrap_err();
        assert!(error.contains(words), "{error}\n(wanted: {words})");
    }
    let text = "services:\n- name: billing\n  url: https://billing\nca_certificates:\n- id: theirs\n  cert: x\n";
    std::fs::write(&base, text).unwrap();
    let rendered = files(&wanted, &material).unwrap();
    assert_eq!(rendered.files[0].mode, 0o600);
    let config: serde_norway::Value = serde_norway::from_slice(&rendered.files[0].content).unwrap();
    assert_eq!(config["_format_version"], "3.0");
    assert_eq!(config["services"][0]["url"], "https://billing");
    assert_eq!(config["services"][0]["ca_certificates"][0], config["ca_certificates"][1]["id"]);
    assert_eq!(config["ca_certificates"][0]["id"], "theirs");
    let certificate = &config["certificates"][0];
    assert_eq!(certificate["snis"][0]["name"], "a.example");
    let chain = CertificateDer::from_pem_slice(certificate["cert"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(chain, material.identity.svid.chain()[0]);
    let key = PrivatePkcs8KeyDer::from_pem_slice(certificate["key"].as_str().unwrap().as_bytes()).unwrap();
    material.identity.svid.key_fits(key.secret_pkcs8_der()).unwrap();
}

#[test]
fn an_expired_certificate_is_never_rendered() {
    let (delivery, material) = (delivery(Path::new("/d"), THREE), material());
    let until = material.identity.svid.lifetime().not_after;
    let at = |now| render(Of { delivery: &delivery, material: &material, inputs: &Inputs::default(), now });
    assert!(at(until).is_ok());
    let error = at(until.plus(std::time::Duration::from_secs(1))).unwrap_err();
    assert!(error.to_string().contains("the SVID has expired at 2027-"), "{error}");
}

#[test]
fn a_key_of_another_certificate_is_never_rendered() {
    let mut wrong = material();
    wrong.identity.key = material().identity.key;
    assert!(files(THREE, &wrong).unwrap_err().contains("do not belong together"));
}

#[test]
fn names_that_clash_or_lead_away_are_refused() {
    let material = material();
    let twice = files(&(file("chain", "{{name}}.pem") + &file("bundle", "nginx.pem")), &material).unwrap_err();
    assert!(twice.contains("\"nginx.pem\""), "{twice}");
    let rendered = files(&file("chain", "{{spiffe_id_path}}.pem"), &material).unwrap();
    assert_eq!(rendered.files[0].name, "shop-web.pem");
}

#[test]
fn a_version_changes_with_what_a_delivery_is_made_of_and_nothing_else() {
    let version = |rest: &str, material: &Material| material.version(&delivery(Path::new("/d"), rest));
    let one = material();
    let (mut renewed, mut rooted, mut federated) = (one.clone(), one.clone(), one.clone());
    let other = material().identity;
    (renewed.identity.svid, renewed.identity.key) = (other.svid.clone(), other.key.clone());
    rooted.identity.roots.insert(one.id().trust_domain(), other.own_roots().to_vec());
    federated.identity.roots.pop_last();
    let bundle = "[[deliver.file]]\nkind = 'bundle'\nname = '{{trust_domain}}'\nfederated = ";
    for (rest, expected) in [
        (THREE.to_owned(), [true, true, false]),
        (file("combined", "a"), [true, false, false]),
        (format!("{bundle}false\n"), [false, true, false]),
        (format!("{bundle}true\n"), [false, true, true]),
    ] {
        let first = version(&rest, &one);
        assert!(first.len() == 16 && first.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(first, version(&rest, &one.clone()));
        let changes = [&renewed, &rooted, &federated].map(|other| version(&rest, other) != first);
        assert_eq!(changes, expected, "{rest}");
    }
}

#[test]
fn roots_are_delivered_however_old_the_svid_is() {
    let roots = delivery(Path::new("/d"), "[[deliver.file]]\nkind = 'bundle'\nname = 'ca.crt'\n");
    let (material, inputs) = (material(), Inputs::default());
    let of = Of { delivery: &roots, material: &material, inputs: &inputs, now: NOW.plus(2 * HOUR) };
    assert_eq!(render(of).unwrap().files.len(), 1);
    let three = delivery(Path::new("/d"), THREE);
    assert!(matches!(render(Of { delivery: &three, ..of }), Err(RenderError::Expired(_))));
}
