//! Configs, files, ports and entries that cannot be: each with the exact words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use ca_server::config::Config;
use spiffe::crypto::generate_key;
use spiffe::entry::KeyType;
use spiffe::proto::v1;
use tests::by_hand::Caller;
use tests::house::{House, id, text};
use tests::operator::entry;
use tonic::Code;

async fn refused(house: &mut House) -> String {
    house.start_server().await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_corrupt_store_stops_the_start_and_says_so() {
    let mut house = House::start(House::ON_DISK).await;
    let agent = Caller::attest(&house).await;
    for n in 0..50 {
        house.operator().await.register(entry(agent.id(), &format!("/web/{n}"))).await;
    }
    house.stop_server().await;
    let file = house.path("server/store/db");
    let mut bytes = std::fs::read(&file).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[used / 2] ^= 0x10;
    std::fs::write(&file, &bytes).unwrap();
    let why = refused(&mut house).await;
    assert!(why.starts_with("the store is corrupt: "), "{why}");
    // Mended, it starts, and everything is there.
    bytes[used / 2] ^= 0x10;
    std::fs::write(&file, &bytes).unwrap();
    house.start_server().await.unwrap();
    assert_eq!(house.operator().await.info().await.entries, 50);
}

#[tokio::test]
async fn a_store_that_another_server_has_open_is_refused() {
    let house = House::start(House::ON_DISK).await;
    let mut second = House::empty(House::ON_DISK);
    second.set("data_dir", &text(&house.path("server")));
    second.set("admin_socket", &text(&second.path("admin.sock")));
    let why = refused(&mut second).await;
    assert!(why.starts_with("the store is unavailable: "), "{why}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for key in ["listen", "health_listen"] {
        let mut house = House::empty(&[(key, &address)]);
        assert_eq!(
            refused(&mut house).await,
            format!(
                "cannot listen on {key} {address}: Address already in use (os error 98): another process has this port; stop it, or choose another one"
            )
        );
    }
}

#[tokio::test]
async fn a_stale_admin_socket_is_replaced_and_a_live_one_is_not() {
    let mut house = House::empty(&[]);
    let path = house.path("admin.sock");
    house.set("admin_socket", &text(&path));
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "stale: nobody listens");
    house.start_server().await.unwrap();
    house.operator().await.info().await;

    let mut second = House::empty(&[("admin_socket", &text(&path))]);
    assert_eq!(
        refused(&mut second).await,
        format!("another server answers on {}: stop it, or choose another admin_socket", path.display())
    );
    house.operator().await.info().await;
    house.stop_server().await;
    assert!(!path.exists());

    std::fs::write(&path, "a file").unwrap();
    assert_eq!(
        refused(&mut second).await,
        format!("{} exists and is no socket: remove it, or choose another admin_socket", path.display())
    );
}

#[test]
fn configs_that_cannot_be() {
    let parse =
        |text: &str| Config::parse(&format!("trust_domain = 'example.org'\n{text}"), []).unwrap_err().to_string();
    let unknown = parse("[svid]\nlife = '1h'");
    assert!(unknown.contains("unknown field `life`, expected one of `ttl`, `max_ttl`, `agent_ttl`"), "{unknown}");
    assert!(unknown.contains("line 3"), "{unknown}");
    assert_eq!(
        parse("[svid]\nttl = '8h'\n[authority]\nca_ttl = '24h'"),
        "svid.ttl = \"8h\" is too long for authority.ca_ttl = \"1d\": a leaf must not outlive its CA through a \
         rotation. Set svid.ttl to at most \"4h\", or authority.ca_ttl to at least \"2d\""
    );
    let path = format!("/{}", "s".repeat(120));
    let long = parse(&format!("admin_socket = '{path}'"));
    let words = format!(
        "socket path \"{path}\" has 121 bytes: 1 to 107 are allowed. Choose a shorter folder, for example /run/chancery"
    );
    assert!(long.contains(&words), "{long}");
    let units = parse("[svid]\nttl = 60");
    assert!(units.contains("line 3") && units.contains("invalid type: integer `60`, expected a string"), "{units}");
}

#[tokio::test]
async fn entries_that_cannot_be() {
    let house = House::start(&[("authority.ca_ttl", "24h")]).await;
    let operator = house.operator().await;
    let agent = Caller::attest(&house).await;
    let good = entry(agent.id(), "/web");
    let (held, _) = operator.register(good.clone()).await;
    type Change = fn(&mut v1::Entry);
    let cases: &[(Change, Code, &str)] = &[
        (
            |e| e.x509_ttl = 5 * 3600,
            Code::InvalidArgument,
            "a life of 5h was asked for, at most 4h is allowed: ask for less, or raise svid.max_ttl and authority.ca_ttl in the server's config",
        ),
        (
            |e| e.spiffe_id = "spiffe://other.test/web".into(),
            Code::InvalidArgument,
            "spiffe_id spiffe://other.test/web is no ID of example.org with a path: this server issues no others",
        ),
        (
            |e| e.spiffe_id = "spiffe://example.org".into(),
            Code::InvalidArgument,
            "spiffe_id spiffe://example.org is no ID of example.org with a path: this server issues no others",
        ),
        (
            |e| e.spiffe_id = id("/chancery/server").to_string(),
            Code::InvalidArgument,
            "spiffe_id spiffe://example.org/chancery/server is reserved: IDs under /chancery belong to Chancery's own servers and agents",
        ),
        (
            |e| e.spiffe_id = "spiffe://example.org/a/../b".into(),
            Code::InvalidArgument,
            "spiffe_id: SPIFFE ID path has a segment \"..\": relative segments are not allowed",
        ),
        (|e| e.selectors.clear(), Code::InvalidArgument, "selectors (at least one) is missing"),
        (
            |e| e.selectors = vec!["nonsense".into()],
            Code::InvalidArgument,
            "selector \"nonsense\" has no colon: write it as type:value, for example unix:uid:1000",
        ),
        (
            |e| e.dns_names = vec!["not a name".into()],
            Code::InvalidArgument,
            "DNS name \"not a name\" is not one: labels of 1 to 63 of a-z, 0-9 and dash, 253 in all, in lower case",
        ),
        (
            |e| e.key_type = "rsa".into(),
            Code::InvalidArgument,
            "key type \"rsa\" is not known: use p256, p384 or ed25519",
        ),
        (|e| e.hint = "a\u{7}".into(), Code::InvalidArgument, "hint has a control character: remove it"),
    ];
    for (change, code, words) in cases {
        let mut wanted = good.clone();
        change(&mut wanted);
        let refused = operator.try_register(wanted).await.unwrap_err();
        assert_eq!(Code::from(refused.code), *code, "{refused:?}");
        assert_eq!(refused.message, *words);
    }
    let refused = operator.try_register(good.clone()).await.unwrap_err();
    assert_eq!(Code::from(refused.code), Code::AlreadyExists);
    let named = format!("entry {} has the same SPIFFE ID, parent and selectors already: update that one", held.id);
    assert_eq!(refused.message, named);
    let entries = vec![good; 1001];
    let refused = operator
        .door
        .clone()
        .create_entries(v1::CreateEntriesRequest { entries, ..Default::default() })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "1001 entries in one request: at most 1000 are allowed");
    assert_eq!(operator.info().await.entries, 1);
}

#[tokio::test]
async fn lives_of_tokens_that_cannot_be() {
    let house = House::start(&[("jwt.max_ttl", "30m"), ("wit.max_ttl", "2h")]).await;
    let operator = house.operator().await;
    let agent = Caller::attest(&house).await;
    let refused = async |wanted| operator.try_register(wanted).await.unwrap_err().message;
    assert_eq!(
        refused(v1::Entry { jwt_ttl: 3600, ..entry(agent.id(), "/web") }).await,
        "a life of 1h was asked for, at most 30m is allowed: ask for less, or raise jwt.max_ttl and jwt.key_ttl in the server's config"
    );
    assert_eq!(
        refused(v1::Entry { wit_ttl: 3 * 3600, ..entry(agent.id(), "/web") }).await,
        "a life of 3h was asked for, at most 2h is allowed: ask for less, or raise wit.max_ttl and wit.key_ttl in the server's config"
    );
    assert_eq!(
        refused(v1::Entry { jwt_ttl: 1, ..entry(agent.id(), "/web") }).await,
        "a life of 1s was asked for: it has to be 2s at least"
    );
}

#[tokio::test]
async fn jwts_that_no_agent_gets() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let (agent, other) = (Caller::attest(&house).await, Caller::attest(&house).await);
    let (own, _) = operator.register(entry(agent.id(), "/web")).await;
    let (foreign, _) = operator.register(entry(other.id(), "/db")).await;
    let long = "a".repeat(513);
    let many: Vec<&str> = vec!["a"; 33];
    for (entry, audience, code, words) in [
        (&own.id, &[] as &[&str], Code::InvalidArgument, "there is no audience: say for whom the token is".to_owned()),
        (
            &own.id,
            &["a", ""],
            Code::InvalidArgument,
            "an audience is empty: leave it out, or say for whom the token is".into(),
        ),
        (&own.id, &[long.as_str()], Code::InvalidArgument, "an audience has 513 bytes: at most 512 are allowed".into()),
        (
            &own.id,
            many.as_slice(),
            Code::InvalidArgument,
            "there are 33 audiences: at most 32 are allowed, and one is best".into(),
        ),
        (
            &foreign.id,
            &["a"],
            Code::PermissionDenied,
            format!("entry {} is not one of agent {}", foreign.id, agent.id()),
        ),
        (&"none".to_owned(), &["a"], Code::NotFound, "there is no entry none".into()),
    ] {
        let refused = agent.issue_jwt(&house, entry, audience).await.unwrap_err();
        assert_eq!((Code::from(refused.code), refused.message), (code, words));
    }
    let request = v1::JwtSvidRequest { entry_id: own.id.clone(), audience: vec!["a".into()] };
    let requests = v1::IssueJwtSvidsRequest { requests: vec![request; 501] };
    let mut door = agent.door(&house).await.unwrap();
    let refused = door.issue_jwt_svids(requests).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "501 requests in one batch: at most 500 are allowed");

    operator.door.clone().ban_agent(v1::BanAgentRequest { id: agent.id().to_string() }).await.unwrap();
    let refused = door.issue_jwt_svids(v1::IssueJwtSvidsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "the connection is open, and it is banned at once");
    let refused = door.issue_wit_svids(v1::IssueWitSvidsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn wits_that_no_agent_gets() {
    let house = House::start(&[]).await;
    let operator = house.operator().await;
    let (agent, other) = (Caller::attest(&house).await, Caller::attest(&house).await);
    let (own, _) = operator.register(entry(agent.id(), "/web")).await;
    let (foreign, _) = operator.register(entry(other.id(), "/db")).await;
    let csr = |kind| spiffe::csr::create(&generate_key(kind).unwrap()).unwrap();
    let refused = agent.issue_wit(&house, &own.id, csr(KeyType::Ed25519)).await.unwrap_err();
    assert_eq!(Code::from(refused.code), Code::InvalidArgument);
    assert_eq!(
        refused.message,
        "a WIT-SVID is bound to a P-256 or P-384 key, the CSR has a ed25519 one, which signs no Workload Proof Tokens: \
         make a p256 key"
    );
    let mut without_possession = csr(KeyType::P256);
    *without_possession.last_mut().unwrap() ^= 1;
    let refused = agent.issue_wit(&house, &own.id, without_possession).await.unwrap_err();
    assert!(refused.message.starts_with("signature of the CSR is wrong"), "{}", refused.message);
    let refused = agent.issue_wit(&house, &own.id, b"no CSR".to_vec()).await.unwrap_err();
    assert_eq!(Code::from(refused.code), Code::InvalidArgument);
    let refused = agent.issue_wit(&house, &foreign.id, csr(KeyType::P256)).await.unwrap_err();
    assert_eq!(Code::from(refused.code), Code::PermissionDenied);
}
