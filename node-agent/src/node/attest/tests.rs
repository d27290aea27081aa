use std::fs;

use spiffe::time::Timestamp;

use super::*;
use crate::config::Secret;
use crate::test_house::House;

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

fn attestor(house: &House, address: &Address, token: &str) -> Attestor {
    Attestor {
        trust_domain: house.trust_domain(),
        servers: vec![address.clone()],
        bootstrap: Some(Bootstrap::Fingerprint(house.fingerprint())),
        method: Attest::JoinToken(Some(Token::Text(Secret::from(token.to_owned())))),
        key_type: KeyType::P256,
        clock: Arc::new(house.clock()),
    }
}

#[tokio::test]
async fn a_join_token_is_good_once() {
    let house = House::new(NOW);
    let serving = house.serve(None).await;
    house.state().tokens.insert("abc".into());
    let attestor = attestor(&house, &serving.address, "abc");
    let (identity, bundle) = attestor.attest(None).await.unwrap();
    assert_eq!(identity.svid.id().as_str(), "spiffe://example.org/chancery/agent/join_token/node");
    assert_eq!(bundle, house.bundle());
    let error = attestor.attest(None).await.unwrap_err();
    assert!(!error.is_transient());
    assert!(error.to_string().contains("create another with \"chancery token create\""), "{error}");
}

#[tokio::test]
async fn the_server_is_known_by_a_bundle_file_too() {
    let house = House::new(NOW);
    let serving = house.serve(None).await;
    let place = tempfile::tempdir().unwrap();
    for (name, document) in [("b.pem", house.bundle().to_pem()), ("b.json", house.bundle().to_jwks())] {
        house.state().tokens.insert("abc".into());
        let path = place.path().join(name);
        fs::write(&path, document).unwrap();
        let attestor =
            Attestor { bootstrap: Some(Bootstrap::Bundle(path)), ..attestor(&house, &serving.address, "abc") };
        attestor.attest(None).await.unwrap();
    }
    let attestor = Attestor {
        bootstrap: Some(Bootstrap::Bundle(place.path().join("none"))),
        ..attestor(&house, &serving.address, "abc")
    };
    assert!(attestor.attest(None).await.unwrap_err().to_string().contains("there is no such file"));
}

#[tokio::test]
async fn a_stranger_in_the_servers_place_never_sees_the_token() {
    let (house, stranger) = (House::new(NOW), House::new(NOW));
    let serving = stranger.serve(None).await;
    stranger.state().tokens.insert("abc".into());
    let error = attestor(&house, &serving.address, "abc").attest(None).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let told = format!("this agent reached {} but does not trust it: ", serving.address);
    assert!(error.to_string().starts_with(&told), "{error}");
    assert!(
        error.to_string().contains("compare the fingerprint or bundle with \"chancery authority list\""),
        "{error}"
    );
    assert!(stranger.state().tokens.contains("abc"));
}

#[tokio::test]
async fn a_dead_address_is_passed_over_and_a_stale_stored_bundle_too() {
    let (house, stranger) = (House::new(NOW), House::new(NOW));
    let serving = house.serve(None).await;
    house.state().tokens.insert("abc".into());
    let mut attestor = attestor(&house, &serving.address, "abc");
    attestor.servers.insert(0, "127.0.0.1:1".parse().unwrap());
    attestor.attest(Some(&stranger.bundle())).await.unwrap();
}

#[tokio::test]
async fn a_stored_bundle_is_enough_to_know_the_server() {
    let house = House::new(NOW);
    let serving = house.serve(None).await;
    house.state().tokens.insert("abc".into());
    let attestor = Attestor { bootstrap: None, ..attestor(&house, &serving.address, "abc") };
    let error = attestor.attest(None).await.unwrap_err();
    assert!(!error.is_transient());
    for words in ["bootstrap_bundle", "--bootstrap-bundle", "ca_fingerprint", "--ca-fingerprint"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    attestor.attest(Some(&house.bundle())).await.unwrap();
}

#[tokio::test]
async fn a_port_of_something_else_is_told_as_that() {
    let house = House::new(NOW);
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Address = other.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let (mut stream, _) = other.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    let error = attestor(&house, &address, "abc").attest(None).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains(&format!("{address}: no Chancery server at this port")), "{error}");
}

#[tokio::test]
async fn a_node_with_a_certificate_answers_the_challenge() {
    let house = House::new(NOW);
    let serving = house.serve(None).await;
    let place = tempfile::tempdir().unwrap();
    let (certificates, private_key) = (place.path().join("c.pem"), place.path().join("k.pem"));
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["node".into()]).unwrap().self_signed(&key).unwrap();
    fs::write(&certificates, certificate.pem()).unwrap();
    fs::write(&private_key, key.serialize_pem()).unwrap();
    let method = Attest::X509Pop { certificates, private_key };
    let attestor = Attestor { method, ..attestor(&house, &serving.address, "") };
    let (identity, _) = attestor.attest(None).await.unwrap();
    assert_eq!(identity.svid.id().agent_path(), Some("x509pop/node"));
}

#[tokio::test]
async fn the_token_of_a_service_account_is_read_at_each_attempt() {
    let house = House::new(NOW);
    let serving = house.serve(None).await;
    let place = tempfile::tempdir().unwrap();
    let token_path = place.path().join("token");
    let method = Attest::K8sPsat { cluster: "eu-1".into(), token_path: token_path.clone() };
    let attestor = Attestor { method, ..attestor(&house, &serving.address, "") };
    let error = attestor.attest(None).await.unwrap_err();
    assert!(error.to_string().contains("mount a projected token") && !error.is_transient(), "{error}");
    fs::write(&token_path, "e.x.pired").unwrap();
    house.state().tokens.insert("f.re.sh".into());
    let error = attestor.attest(None).await.unwrap_err();
    assert_eq!(error.to_string(), "the server does not accept this node: the token is refused: it has expired");
    // The kubelet has renewed it.
    fs::write(&token_path, "f.re.sh\n").unwrap();
    for _ in 0..2 {
        let (identity, _) = attestor.attest(None).await.unwrap();
        assert_eq!(identity.svid.id().agent_path(), Some("k8s_psat/node"), "and it is good more than once");
    }
}

#[tokio::test]
async fn without_a_token_nobody_is_asked() {
    let house = House::new(NOW);
    let method = Attest::JoinToken(Some(Token::File("/nonexistent/token".into())));
    let attestor = Attestor { method, ..attestor(&house, &"127.0.0.1:1".parse().unwrap(), "") };
    let error = attestor.attest(None).await.unwrap_err();
    assert!(matches!(error, NodeError::NoToken) && !error.is_transient(), "{error}");
}
