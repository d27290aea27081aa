//! `kind = "kong"`: certificate and CA certificates over Kong's Admin API; `kind = "kong_file"`: a declarative config that
//! was delivered, to a Kong without a database.
//!
//! - *whom to trust first*: the new roots are there before anything is signed by them alone, and the old ones go last, when
//!   no service names them any more: Kong refuses to remove what is still used.
//! - *ours alone*: what is removed bears this delivery's tag.
//! - Doing it again changes nothing: IDs are made of what they name.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::http::{Answer, Ask, ask};
use super::{ActionError, Context, aside, shown};
use crate::config::deliver::kong::{KongAdmin, KongEntities};
use crate::deliver::kong::KongIdentity;
use crate::deliver::{folder, inputs};

/// The largest page that Kong gives.
const PAGE: usize = 1000;
/// More pages than there can be roots of ours.
const MAX_PAGES: usize = 16;

/// Puts the identity into Kong.
pub(super) async fn put(admin: &KongAdmin, entities: &KongEntities, context: Context<'_>) -> Result<(), ActionError> {
    let told = KongIdentity::new(context.name, entities, context.material, context.clock.now());
    for (id, pem) in &told.roots {
        let root = json!({ "cert": pem, "tags": told.tags });
        expect(admin, Method::PUT, &format!("/ca_certificates/{id}"), body(&root)).await?;
    }
    put_certificate(admin, entities, &told).await?;
    let roots: Vec<&String> = told.roots.iter().map(|(id, _)| id).collect();
    for service in &entities.services {
        let change = body(&json!({ "ca_certificates": roots }));
        expect(admin, Method::PATCH, &format!("/services/{service}"), change).await?;
    }
    for id in present_roots(admin, &told.tags[1]).await? {
        if !told.roots.iter().any(|(known, _)| *known == id) {
            expect(admin, Method::DELETE, &format!("/ca_certificates/{id}"), Bytes::new()).await?;
        }
    }
    Ok(())
}

/// Hands over the delivered file `file`.
pub(super) async fn load(admin: &KongAdmin, file: &str, context: Context<'_>) -> Result<(), ActionError> {
    let (dir, name) = (context.dir.to_owned(), file.to_owned());
    let content = aside(move || Ok(inputs::read_open(folder::delivered(&dir, &name)?, &dir.join(&name))?)).await?;
    let text = String::from_utf8_lossy(&content);
    let config = body(&json!({ "config": text }));
    expect(admin, Method::POST, "/config", config).await.map(drop)
}

/// Changes the certificate entity, or makes it: what else the operator has set of it stays.
async fn put_certificate(admin: &KongAdmin, entities: &KongEntities, told: &KongIdentity) -> Result<(), ActionError> {
    let mut certificate = json!({ "cert": told.chain, "key": told.key(), "tags": told.tags });
    if !entities.snis.is_empty() {
        certificate["snis"] = json!(entities.snis);
    }
    let (path, body) = (format!("/certificates/{}", told.certificate_id), body(&certificate));
    wipe(&mut certificate);
    let changed = ask(admin, Ask { method: Method::PATCH, path: &path, body: body.clone() }).await?;
    match changed.status {
        404 => expect(admin, Method::PUT, &path, body).await.map(drop),
        _ => good("PATCH", &path, changed).map(drop),
    }
}

/// The IDs of the CA certificates with this tag.
async fn present_roots(admin: &KongAdmin, tag: &str) -> Result<BTreeSet<String>, ActionError> {
    let (mut found, mut path) = (BTreeSet::new(), format!("/ca_certificates?tags={tag}&size={PAGE}"));
    for _ in 0..MAX_PAGES {
        let answer = expect(admin, Method::GET, &path, Bytes::new()).await?;
        let page: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let data = page["data"].as_array().into_iter().flatten();
        found.extend(data.filter_map(|entity| Some(entity["id"].as_str()?.to_owned())));
        match page["next"].as_str() {
            // Below the Admin API itself, whatever it says.
            Some(next) if next.starts_with("/ca_certificates?") => path = next.to_owned(),
            _ => break,
        }
    }
    Ok(found)
}

async fn expect(admin: &KongAdmin, method: Method, path: &str, body: Bytes) -> Result<Answer, ActionError> {
    let word = match method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::POST => "POST",
        _ => "DELETE",
    };
    good(word, path, ask(admin, Ask { method, path, body }).await?)
}

fn good(method: &'static str, path: &str, answer: Answer) -> Result<Answer, ActionError> {
    if (200..300).contains(&answer.status) {
        return Ok(answer);
    }
    let words = shown(&String::from_utf8_lossy(&answer.body));
    Err(ActionError::Refused { method, path: path.to_owned(), status: answer.status, words })
}

/// JSON that is wiped when it is sent.
fn body(value: &Value) -> Bytes {
    struct Wiped(Zeroizing<Vec<u8>>);
    impl AsRef<[u8]> for Wiped {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Wiped(value.to_string().into_bytes().into()))
}

/// Wipes the key in a certificate entity.
fn wipe(certificate: &mut Value) {
    if let Some(Value::String(key)) = certificate.get_mut("key") {
        zeroize::Zeroize::zeroize(key);
    }
}
