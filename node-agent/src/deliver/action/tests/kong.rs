//! A contract test: Kong itself cannot be installed here, so this is an Admin API that keeps Kong's own rules.
//!
//! - a certificate's key matches it; IDs are UUIDs; PATCH changes what is there and answers 404 where nothing is
//! - a CA certificate is one certificate, with the CA flag, not expired, and is there once
//! - what a service still names is not removed; lists are filtered by tags and come in pages

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Map, Value, json};
use spiffe::bundle::X509Authority;
use spiffe::x509_svid::X509Svid;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::config::deliver::{Delivery, Standalone};
use crate::deliver::material::Material;

#[derive(Default)]
struct Kong {
    /// By collection and ID.
    entities: BTreeMap<(String, String), Map<String, Value>>,
    token: String,
    /// The config of a Kong without a database.
    config: String,
}

type Judged = Result<(u16, Value), (u16, String)>;

impl Kong {
    fn answer(&mut self, method: &str, path: &str, body: &Value) -> Judged {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut parts = path.trim_start_matches('/').split('/');
        let (collection, id) = (parts.next().unwrap().to_owned(), parts.next().unwrap_or_default().to_owned());
        let place = (collection.clone(), id.clone());
        match (method, collection.as_str()) {
            ("POST", "config") => {
                self.config = body["config"].as_str().ok_or((400, "expected a declarative config".to_owned()))?.into();
                Ok((201, json!({})))
            }
            ("GET", _) => Ok((200, self.list(&collection, query))),
            ("PUT" | "PATCH", "certificates" | "ca_certificates" | "services") => {
                let present = self.entities.get(&place);
                if method == "PATCH" && present.is_none() {
                    return Err((404, r#"{"message":"Not found"}"#.into()));
                }
                let mut entity = present.filter(|_| method == "PATCH").cloned().unwrap_or_default();
                entity.extend(body.as_object().unwrap().clone());
                entity.insert("id".into(), id.clone().into());
                self.judge(&collection, &id, &entity)?;
                self.entities.insert(place, entity.clone());
                Ok((200, entity.into()))
            }
            ("DELETE", "ca_certificates") => {
                let mut services = self.entities.iter().filter(|((collection, _), _)| collection == "services");
                if services.any(|(_, service)| service["ca_certificates"].to_string().contains(&id)) {
                    return Err((400, "ca certificate is still referenced by services".into()));
                }
                self.entities.remove(&place);
                Ok((204, Value::Null))
            }
            _ => Err((405, "Method not allowed".into())),
        }
    }

    /// Pages of one, so that paging is seen to work.
    fn list(&self, collection: &str, query: &str) -> Value {
        let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
        let tag = value("tags").map(Value::from);
        let is_tagged = |entity: &&Map<String, Value>| {
            tag.as_ref().is_none_or(|tag| entity["tags"].as_array().unwrap().contains(tag))
        };
        let all = self.entities.iter().filter(|((kind, _), _)| kind == collection).map(|(_, entity)| entity);
        let all: Vec<_> = all.filter(is_tagged).collect();
        let offset: usize = value("offset").map_or(0, |offset| offset.parse().unwrap());
        let next = format!("/{collection}?tags={}&offset={}", value("tags").unwrap_or_default(), offset + 1);
        let next = if offset + 1 < all.len() { Value::from(next) } else { Value::Null };
        json!({ "data": all.get(offset).into_iter().collect::<Vec<_>>(), "next": next })
    }

    fn judge(&self, collection: &str, id: &str, entity: &Map<String, Value>) -> Result<(), (u16, String)> {
        let wrong = |why: &str| Err((400, format!("schema violation ({why})")));
        let certificates = |key: &str| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_slice_iter(entity[key].as_str().unwrap().as_bytes()).map(Result::unwrap).collect()
        };
        if collection != "services" && id.split('-').map(str::len).ne([8, 4, 4, 4, 12]) {
            return wrong("id: expected a valid UUID");
        }
        match collection {
            "certificates" => {
                let key = PrivatePkcs8KeyDer::from_pem_slice(entity["key"].as_str().unwrap().as_bytes()).unwrap();
                match X509Svid::parse(certificates("cert")).unwrap().key_fits(key.secret_pkcs8_der()) {
                    Ok(()) => Ok(()),
                    Err(_) => wrong("certificate does not match key"),
                }
            }
            "ca_certificates" => {
                let [root] = &certificates("cert")[..] else {
                    return wrong("cert: please submit only one certificate at a time");
                };
                if X509Authority::from_der(root.clone()).is_err() {
                    return wrong(
                        "certificate does not appear to be a CA because it is missing the \"CA\" basic constraint",
                    );
                }
                let (_, parsed) = X509Certificate::from_der(root).unwrap();
                if parsed.validity().not_after.timestamp() < NOW.unix() as i64 {
                    return wrong("certificate expired, \"Not After\" time is in the past");
                }
                let is_twin = |((kind, other), twin): (&(String, String), &Map<String, Value>)| {
                    kind == collection && other != id && twin["cert"] == entity["cert"]
                };
                if self.entities.iter().any(is_twin) {
                    return Err((409, "UNIQUE violation detected on '{cert_digest=...}'".into()));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

async fn serve(kong: Arc<Mutex<Kong>>) -> SocketAddr {
    serve_by(kong, None).await
}

async fn serve_by(kong: Arc<Mutex<Kong>>, tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serve_at(listener, kong, tls);
    address
}

fn serve_at(listener: tokio::net::TcpListener, kong: Arc<Mutex<Kong>>, tls: Option<TlsAcceptor>) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kong = kong.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let kong = kong.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                    let mut kong = kong.lock().unwrap();
                    let token = head.headers.get("kong-admin-token").map(|value| value.to_str().unwrap().to_owned());
                    let judged = if token.unwrap_or_default() == kong.token {
                        kong.answer(head.method.as_str(), head.uri.path_and_query().unwrap().as_str(), &body)
                    } else {
                        Err((401, "Unauthorized".into()))
                    };
                    let (status, text) =
                        judged.map_or_else(|wrong| wrong, |(status, value)| (status, value.to_string()));
                    let response = Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap();
                    Ok::<_, Infallible>(response)
                }
            });
            let tls = tls.clone();
            tokio::spawn(async move {
                let http = hyper::server::conn::http1::Builder::new();
                match tls {
                    None => http.serve_connection(TokioIo::new(stream), service).await.unwrap(),
                    Some(tls) => {
                        // Whoever is refused is told so by TLS.
                        let Ok(stream) = tls.accept(stream).await else { return };
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                }
            });
        }
    });
}

/// A delivery with one action on the Kong at `address`.
fn kong_delivery(address: SocketAddr, name: &str, rest: &str) -> Delivery {
    let text = format!(
        "[[deliver]]\nname = '{name}'\ndir = '/d'\n[[deliver.file]]\nkind = 'chain'\nname = 'a'\n[[deliver.action]]\n\
         admin_url = 'http://{address}'\n{rest}"
    );
    Standalone::parse(&text, []).unwrap().deliveries.remove(0)
}

async fn put(delivery: &Delivery, material: &Material, dir: &Path) -> Result<(), String> {
    let clock = Fake::new(NOW);
    let context = Context { name: &delivery.name, dir, material, clock: &clock };
    act(&delivery.actions[0], context).await.map_err(|error| error.to_string())
}

fn ids(kong: &Mutex<Kong>, collection: &str) -> Vec<String> {
    let kong = kong.lock().unwrap();
    kong.entities.keys().filter(|(kind, _)| kind == collection).map(|(_, id)| id.clone()).collect()
}

/// `material` with another root beside its own.
fn with_another_root(material: &Material) -> Material {
    let mut both = material.clone();
    let other = both.identity.roots.values().next_back().unwrap().clone();
    both.identity.roots.get_mut(&material.id().trust_domain()).unwrap().extend(other);
    both
}

#[tokio::test]
async fn contract_kong_gets_a_certificate_and_one_ca_certificate_for_each_root() {
    let kong = Arc::new(Mutex::new(Kong::default()));
    kong.lock().unwrap().entities.insert(("services".into(), "billing".into()), Map::new());
    let manual = "00000000-0000-4000-8000-000000000000".to_owned();
    let theirs = json!({ "cert": "x", "tags": ["theirs"] }).as_object().unwrap().clone();
    kong.lock().unwrap().entities.insert(("ca_certificates".into(), manual.clone()), theirs);
    let delivery = kong_delivery(serve(kong.clone()).await, "web", "kind = 'kong'\nservices = ['billing']\n");
    let first = material();
    put(&delivery, &first, Path::new("/d")).await.unwrap();
    let (certificate, old) = (ids(&kong, "certificates"), ids(&kong, "ca_certificates"));
    assert_eq!((certificate.len(), old.len()), (1, 2));

    // What the operator has set of it stays; doing it again changes nothing.
    let place = ("certificates".to_owned(), certificate[0].clone());
    kong.lock().unwrap().entities.get_mut(&place).unwrap().insert("snis".into(), json!(["a.example"]));
    put(&delivery, &first, Path::new("/d")).await.unwrap();
    assert_eq!(kong.lock().unwrap().entities[&place]["snis"], json!(["a.example"]));
    assert_eq!(ids(&kong, "ca_certificates"), old);

    // A rotation: two roots, then the new one alone; what is not ours stays.
    let both = with_another_root(&first);
    put(&delivery, &both, Path::new("/d")).await.unwrap();
    assert_eq!(ids(&kong, "ca_certificates").len(), 3);
    let service = ("services".to_owned(), "billing".to_owned());
    assert_eq!(kong.lock().unwrap().entities[&service]["ca_certificates"].as_array().unwrap().len(), 2);
    let mut last = both.clone();
    last.identity.roots.get_mut(&first.id().trust_domain()).unwrap().remove(0);
    put(&delivery, &last, Path::new("/d")).await.unwrap();
    let left = ids(&kong, "ca_certificates");
    assert!(left.len() == 2 && left.contains(&manual) && left.iter().all(|id| *id == manual || !old.contains(id)));
    assert_eq!(ids(&kong, "certificates"), certificate);
}

#[tokio::test]
async fn contract_kong_refuses_and_its_words_are_shown() {
    let kong = Arc::new(Mutex::new(Kong { token: "secret".into(), ..Kong::default() }));
    let (address, place) = (serve(kong.clone()).await, TempDir::new().unwrap());
    let error = put(&kong_delivery(address, "web", "kind = 'kong'\n"), &material(), place.path()).await.unwrap_err();
    assert!(error.contains("with 401: Unauthorized"), "{error}");
    let token = place.path().join("token");
    let with_token = format!("kind = 'kong'\ntoken_file = '{}'\n", token.display());
    let delivery = kong_delivery(address, "web", &with_token);
    assert!(put(&delivery, &material(), place.path()).await.unwrap_err().contains("cannot read"));
    // A pipe that nobody writes to would be waited for, and the time limit with it.
    rustix::fs::mkfifoat(rustix::fs::CWD, &token, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    assert!(put(&delivery, &material(), place.path()).await.unwrap_err().contains("token is no file"));
    fs::remove_file(&token).unwrap();
    fs::write(&token, "secret\n").unwrap();
    let (first, mut torn) = (material(), material());
    torn.identity.key = first.identity.key.clone();
    let error = put(&delivery, &torn, place.path()).await.unwrap_err();
    assert!(error.contains("certificate does not match key") && error.contains("with 400"), "{error}");
    // A CA certificate that somebody else has put there under another ID.
    let twin = with_another_root(&first).identity.roots.values().next().unwrap()[0].clone();
    let pem = crate::deliver::render::pem::certificates(&[twin]);
    let place_of_twin = ("ca_certificates".to_owned(), "00000000-0000-4000-8000-000000000000".to_owned());
    let entity = json!({ "cert": pem, "tags": [] }).as_object().unwrap().clone();
    kong.lock().unwrap().entities.insert(place_of_twin, entity);
    let error = put(&delivery, &first, place.path()).await.unwrap_err();
    assert!(error.contains("with 409: UNIQUE violation"), "{error}");
    let nobody = kong_delivery("127.0.0.1:1".parse().unwrap(), "web", "kind = 'kong'\n");
    assert!(put(&nobody, &first, place.path()).await.unwrap_err().contains("nobody on this machine is seen to listen"));
}

#[tokio::test]
async fn contract_who_listens_in_kongs_place_is_given_nothing() {
    if !nix::unistd::geteuid().is_root() {
        // Only root can give a socket away to try it.
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    std::os::unix::fs::fchown(&listener, Some(4711), None).unwrap();
    let (address, place) = (listener.local_addr().unwrap(), TempDir::new().unwrap());
    let error = put(&kong_delivery(address, "web", "kind = 'kong'\n"), &material(), place.path()).await.unwrap_err();
    assert!(error.contains("uid 4711 listens at") && error.contains("set admin_user"), "{error}");
    assert!(listener.accept().is_err(), "it was not even connected to");

    let kong = Arc::new(Mutex::new(Kong::default()));
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    serve_at(listener, kong.clone(), None);
    let delivery = kong_delivery(address, "web", "kind = 'kong'\nadmin_user = '4711'\n");
    put(&delivery, &material(), place.path()).await.unwrap();
    assert_eq!(ids(&kong, "certificates").len(), 1);
}

#[tokio::test]
async fn contract_kong_without_a_database_is_handed_the_file() {
    let kong = Arc::new(Mutex::new(Kong::default()));
    let (address, place) = (serve(kong.clone()).await, TempDir::new().unwrap());
    let delivery = kong_delivery(address, "web", "kind = 'kong_file'\nfile = 'kong.yml'\n");
    assert!(put(&delivery, &material(), place.path()).await.unwrap_err().contains("kong.yml: No such file"));
    // As it was delivered, and not by a link that leads elsewhere.
    let version = place.path().join("..0000000000000001");
    fs::create_dir(&version).unwrap();
    std::os::unix::fs::symlink("..0000000000000001", place.path().join("..data")).unwrap();
    fs::write(place.path().join("secret"), "root's").unwrap();
    std::os::unix::fs::symlink(place.path().join("secret"), version.join("kong.yml")).unwrap();
    assert!(put(&delivery, &material(), place.path()).await.unwrap_err().contains("cannot read"));
    fs::remove_file(version.join("kong.yml")).unwrap();
    fs::write(version.join("kong.yml"), "_format_version: '3.0'\n").unwrap();
    put(&delivery, &material(), place.path()).await.unwrap();
    assert_eq!(kong.lock().unwrap().config, "_format_version: '3.0'\n");
}

/// A self-signed certificate for localhost and its key; both are written to `dir`.
fn localhost(dir: &Path, name: &str) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) {
    let key = spiffe::crypto::generate_key(spiffe::entry::KeyType::P256).unwrap();
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    fs::write(dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    (certificate.der().clone(), key.serialize_der().into())
}

#[tokio::test]
async fn contract_kong_is_known_by_its_certificate_and_knows_us_by_ours() {
    let (kong, place) = (Arc::new(Mutex::new(Kong::default())), TempDir::new().unwrap());
    let (server, key) = localhost(place.path(), "server");
    let (client, _) = localhost(place.path(), "client");
    localhost(place.path(), "other");
    let mut clients = RootCertStore::empty();
    clients.add(client).unwrap();
    let provider = spiffe::crypto::provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_client_cert_verifier(verifier).with_single_cert(vec![server], key.into()).unwrap();
    let port = serve_by(kong.clone(), Some(TlsAcceptor::from(Arc::new(config)))).await.port();
    let action = |root: &str, client: &str| {
        let dir = place.path().display();
        let client = match client {
            "" => String::new(),
            name => format!("client_certificate = '{dir}/{name}.crt'\nclient_key = '{dir}/{name}.key'\n"),
        };
        let text = format!(
            "[[deliver]]\nname = 'web'\ndir = '/d'\n[[deliver.file]]\nkind = 'chain'\nname = 'a'\n[[deliver.action]]\n\
             kind = 'kong'\nadmin_url = 'https://localhost:{port}'\nca_file = '{dir}/{root}.crt'\n{client}"
        );
        Standalone::parse(&text, []).unwrap().deliveries.remove(0)
    };
    for (root, client) in [("other", "client"), ("server", "other"), ("server", "")] {
        let error = put(&action(root, client), &material(), place.path()).await.unwrap_err();
        assert!(error.contains("cannot be reached"), "{root} {client}: {error}");
    }
    assert!(kong.lock().unwrap().entities.is_empty());
    put(&action("server", "client"), &material(), place.path()).await.unwrap();
    assert_eq!(ids(&kong, "certificates").len(), 1);
}
