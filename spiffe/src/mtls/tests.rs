use std::io::{Read, Write};
use std::time::Duration;

use rcgen::CertificateParams;
use rustls::{ClientConnection, HandshakeKind, ServerConnection};
use rustls_pki_types::ServerName;

use super::*;
use crate::entry::KeyType;
use crate::test_certificates::{Authority, Leaf, NOW, leaf_params, uri};
use crate::time::Fake;

const SERVER: &str = "spiffe://example.org/server";
const WEB: &str = "spiffe://example.org/web";

fn present(leaf: &Leaf) -> CurrentSvid {
    let current = CurrentSvid::default();
    current.set(&X509Svid::parse(leaf.chain.clone()).unwrap(), &[], &leaf.key.serialize_der()).unwrap();
    current
}

/// Presents a certificate that our own side would refuse to.
fn present_anything(leaf: &Leaf) -> Arc<dyn rustls::client::ResolvesClientCert> {
    #[derive(Debug)]
    struct Anything(Arc<rustls::sign::CertifiedKey>);
    impl rustls::client::ResolvesClientCert for Anything {
        fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(self.0.clone())
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(leaf.key.serialize_der());
    let certified = rustls::sign::CertifiedKey::from_der(leaf.chain.clone(), key.into(), &crypto::provider()).unwrap();
    Arc::new(Anything(Arc::new(certified)))
}

struct Ends {
    client: ClientConnection,
    server: ServerConnection,
}

/// Pumps bytes both ways in memory until both sides are done, or one refuses.
fn connect(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Ends, rustls::Error> {
    let name = ServerName::try_from("anything.invalid").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    loop {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let to_server = bytes.len();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
        if to_server + bytes.len() == 0 {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok(Ends { client, server });
        }
    }
}

struct House {
    root: Authority,
    clock: Fake,
    server_svid: CurrentSvid,
    client_svid: CurrentSvid,
    bundles: CurrentBundles,
}

impl House {
    fn new() -> Self {
        let root = Authority::root("root");
        Self {
            clock: Fake::new(NOW),
            server_svid: present(&root.leaf(SERVER)),
            client_svid: present(&root.leaf(WEB)),
            bundles: CurrentBundles::new([root.bundle("example.org")]),
            root,
        }
    }

    fn server(&self, peers: Peers, require: bool) -> Arc<ServerConfig> {
        let clock = Arc::new(self.clock.clone());
        Arc::new(server_config(self.server_svid.clone(), self.bundles.clone(), peers, require, clock).unwrap())
    }

    fn client(&self, peers: Peers) -> Arc<ClientConfig> {
        let clock = Arc::new(self.clock.clone());
        Arc::new(client_config(Some(self.client_svid.clone()), self.bundles.clone(), peers, clock).unwrap())
    }

    /// A server's answer to a client that presents `params` signed by the root, whatever they are.
    fn refusal_of(&self, params: CertificateParams) -> String {
        self.refusal_of_leaf(&self.root.sign(params))
    }

    fn refusal_of_leaf(&self, leaf: &Leaf) -> String {
        let mut client = ClientConfig::clone(&self.client(Peers::Any));
        client.client_auth_cert_resolver = present_anything(leaf);
        refusal(connect(&Arc::new(client), &self.server(Peers::Any, true)))
    }
}

fn refusal(outcome: Result<Ends, rustls::Error>) -> String {
    outcome.err().unwrap().to_string()
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn serial_of_peer(certificates: Option<&[CertificateDer<'static>]>) -> Vec<u8> {
    peer(certificates.unwrap()).unwrap().serial().to_vec()
}

#[test]
fn both_sides_know_each_other_and_can_talk() {
    let house = House::new();
    let mut ends = connect(&house.client(Peers::Ids(vec![id(SERVER)])), &house.server(Peers::Any, true)).unwrap();
    assert_eq!(peer(ends.server.peer_certificates().unwrap()).unwrap().id().as_str(), WEB);
    assert_eq!(peer(ends.client.peer_certificates().unwrap()).unwrap().id().as_str(), SERVER);
    assert_eq!(ends.server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));

    ends.client.writer().write_all(b"hello").unwrap();
    let mut bytes = Vec::new();
    ends.client.write_tls(&mut bytes).unwrap();
    ends.server.read_tls(&mut bytes.as_slice()).unwrap();
    ends.server.process_new_packets().unwrap();
    let mut heard = [0; 5];
    ends.server.reader().read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
}

#[test]
fn no_session_is_resumed() {
    let house = House::new();
    let (client, server) = (house.client(Peers::Any), house.server(Peers::Any, true));
    for _ in 0..3 {
        let ends = connect(&client, &server).unwrap();
        assert_eq!(ends.client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(ends.client.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_new_svid_and_a_new_bundle_are_seen_by_the_next_handshake() {
    let house = House::new();
    let (client, server) = (house.client(Peers::Any), house.server(Peers::Any, true));
    let before = connect(&client, &server).unwrap();

    let mut params = leaf_params(WEB);
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[9, 9]));
    let next = house.root.sign(params);
    let next_svid = X509Svid::parse(next.chain.clone()).unwrap();
    house.client_svid.set(&next_svid, &[], &next.key.serialize_der()).unwrap();
    let after = connect(&client, &server).unwrap();
    assert_eq!(serial_of_peer(after.server.peer_certificates()), [9, 9]);
    assert_ne!(serial_of_peer(before.server.peer_certificates()), [9, 9]);

    // The root goes; the new one's SVIDs are not there yet.
    let new_root = Authority::root("new root");
    house.bundles.set([new_root.bundle("example.org")]);
    assert!(refusal(connect(&client, &server)).contains("leads to no authority"));
    for (current, name) in [(&house.client_svid, WEB), (&house.server_svid, SERVER)] {
        let leaf = new_root.leaf(name);
        current.set(&X509Svid::parse(leaf.chain).unwrap(), &[], &leaf.key.serialize_der()).unwrap();
    }
    assert!(connect(&client, &server).is_ok());
}

#[test]
fn an_expired_svid_is_refused_by_the_clock_that_was_given() {
    let house = House::new();
    let (client, server) = (house.client(Peers::Any), house.server(Peers::Any, true));
    house.clock.advance(Duration::from_secs(3600));
    assert!(connect(&client, &server).is_ok());
    house.clock.advance(Duration::from_secs(1));
    assert!(refusal(connect(&client, &server)).contains("spiffe://example.org/server expired at 2027-01-15T09:00:00Z"));
    house.clock.set(NOW.minus(Duration::from_secs(61)));
    assert!(refusal(connect(&client, &server)).contains("is not valid before"));
}

#[test]
fn who_is_not_expected_is_refused_on_either_side() {
    let house = House::new();
    let others = || Peers::Ids(vec![id("spiffe://example.org/other")]);
    let not_let_in = refusal(connect(&house.client(Peers::Any), &house.server(others(), true)));
    assert!(not_let_in.contains("spiffe://example.org/web is not let in"), "{not_let_in}");
    let not_meant = refusal(connect(&house.client(others()), &house.server(Peers::Any, true)));
    assert!(not_meant.contains("spiffe://example.org/server is not let in"), "{not_meant}");
    let domain = |name| Peers::TrustDomains(vec![TrustDomain::parse(name).unwrap()]);
    assert!(connect(&house.client(domain("example.org")), &house.server(domain("example.org"), true)).is_ok());
    assert!(connect(&house.client(Peers::Any), &house.server(domain("other.org"), true)).is_err());
}

#[test]
fn a_trust_domain_counts_only_under_its_own_bundle() {
    let house = House::new();
    let foreign = leaf_params("spiffe://other.org/web");
    let unknown = house.refusal_of(foreign.clone());
    assert!(unknown.contains("spiffe://other.org/web is of a trust domain whose bundle is not known"), "{unknown}");
    // Known by another root: ours may not speak for it.
    let other = Authority::root("other");
    house.bundles.set([house.root.bundle("example.org"), other.bundle("other.org")]);
    assert!(house.refusal_of(foreign).contains("spiffe://other.org/web leads to no authority"));
    // Its own may.
    let leaf = other.leaf("spiffe://other.org/web");
    house.client_svid.set(&X509Svid::parse(leaf.chain).unwrap(), &[], &leaf.key.serialize_der()).unwrap();
    let ends = connect(&house.client(Peers::Any), &house.server(Peers::Any, true)).unwrap();
    assert_eq!(peer(ends.server.peer_certificates().unwrap()).unwrap().id().as_str(), "spiffe://other.org/web");
}

#[test]
fn what_breaks_the_profile_is_refused_in_plain_words() {
    let house = House::new();
    let mut two = leaf_params(WEB);
    two.subject_alt_names.push(uri(SERVER));
    assert!(house.refusal_of(two).contains("certificate has 2 URI SANs"));
    let mut ca = leaf_params(WEB);
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    assert!(house.refusal_of(ca).contains("certificate is a CA"));
    let mut long = house.root.leaf(WEB);
    long.chain = vec![long.chain[0].clone(); 9];
    assert!(house.refusal_of_leaf(&long).contains("chain has 9 certificates"));
}

#[test]
fn a_stranger_is_let_in_only_where_no_certificate_is_required() {
    let house = House::new();
    let clock = Arc::new(house.clock.clone());
    let stranger = Arc::new(client_config(None, house.bundles.clone(), Peers::Any, clock).unwrap());
    let ends = connect(&stranger, &house.server(Peers::Any, false)).unwrap();
    assert!(ends.server.peer_certificates().is_none());
    assert!(connect(&stranger, &house.server(Peers::Any, true)).is_err());
    // Who presents one is verified all the same.
    house.bundles.set([]);
    assert!(connect(&house.client(Peers::Any), &house.server(Peers::Any, false)).is_err());
}

#[test]
fn a_server_without_an_svid_serves_nobody() {
    let house = House { server_svid: CurrentSvid::default(), ..House::new() };
    assert!(connect(&house.client(Peers::Any), &house.server(Peers::Any, false)).is_err());
}

#[test]
fn a_server_is_known_by_the_fingerprint_of_the_root_that_it_presents() {
    let house = House::new();
    let by = |root: &Authority, peers| {
        let clock = Arc::new(house.clock.clone());
        Arc::new(client_config_by_fingerprint(crypto::sha256(root.der()), peers, clock).unwrap())
    };
    let server = house.server(Peers::Any, false);
    let without = refusal(connect(&by(&house.root, Peers::Any), &server));
    assert!(without.contains("SHA-256 fingerprint"), "{without}");

    let leaf = house.root.leaf(SERVER);
    let svid = X509Svid::parse(leaf.chain.clone()).unwrap();
    let extra = [house.root.der().clone()];
    house.server_svid.set(&svid, &extra, &leaf.key.serialize_der()).unwrap();
    assert!(connect(&by(&house.root, Peers::Ids(vec![id(SERVER)])), &server).is_ok());
    assert!(connect(&by(&house.root, Peers::Ids(vec![id(WEB)])), &server).is_err());

    // The right root beside a chain of another helps nobody.
    let impostor = Authority::root("impostor").leaf(SERVER);
    let svid = X509Svid::parse(impostor.chain.clone()).unwrap();
    house.server_svid.set(&svid, &extra, &impostor.key.serialize_der()).unwrap();
    assert!(refusal(connect(&by(&house.root, Peers::Any), &server)).contains("leads to no authority"));

    // Nor does the fingerprint of a leaf.
    let clock = Arc::new(house.clock.clone());
    let leaf_itself = client_config_by_fingerprint(crypto::sha256(&impostor.chain[0]), Peers::Any, clock).unwrap();
    assert!(refusal(connect(&Arc::new(leaf_itself), &server)).contains("is no authority"));
}

#[test]
fn a_key_that_does_not_fit_is_refused_and_the_old_svid_stays() {
    let house = House::new();
    let svid = X509Svid::parse(house.root.leaf(WEB).chain).unwrap();
    let other = crypto::generate_key(KeyType::P256).unwrap().serialize_der();
    assert_eq!(house.client_svid.set(&svid, &[], &other), Err(SvidError::KeyMismatch(id(WEB))));
    let no_key = house.client_svid.set(&svid, &[], b"no key");
    assert_eq!(no_key, Err(SvidError::PrivateKey(crypto::CryptoError::PrivateKey)));
    assert!(connect(&house.client(Peers::Any), &house.server(Peers::Any, true)).is_ok());
}

#[test]
fn each_kind_of_key_makes_a_handshake() {
    for kind in [KeyType::P256, KeyType::P384, KeyType::Ed25519] {
        let house = House::new();
        let root = Authority::of_kind(kind, "root");
        house.bundles.set([root.bundle("example.org")]);
        for (current, name) in [(&house.client_svid, WEB), (&house.server_svid, SERVER)] {
            let leaf = root.sign_key(leaf_params(name), crypto::generate_key(kind).unwrap());
            current.set(&X509Svid::parse(leaf.chain).unwrap(), &[], &leaf.key.serialize_der()).unwrap();
        }
        assert!(connect(&house.client(Peers::Any), &house.server(Peers::Any, true)).is_ok(), "{kind}");
    }
}

#[test]
fn the_private_key_is_not_printed() {
    let leaf = Authority::shared().leaf(WEB);
    let printed = format!("{:?}", present(&leaf));
    let key = leaf.key.serialize_der();
    let bytes = key[key.len() - 32..].iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    assert!(!printed.contains(&bytes) && printed.contains("EcdsaSigningKey"));
}
