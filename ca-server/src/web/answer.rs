//! Which request gets what. Pure: a head and what was printed of the bundle make an answer.
//!
//! - GET and HEAD of the bundle's path: the bundle as a SPIFFE JWKS document, with an ETag; 304 to who has it already.
//! - OpenID Connect Discovery, where it is served, answers for its own hosts only: 421 to others.
//! - `Cache-Control` lets caches keep it for half of the refresh hint: whoever polls through one has what is prepared
//!   before it is used, as whoever polls here.
//! - A body is never read.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;

use super::discovery;
use super::print::{Page, Print};
use crate::config::Oidc;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// What is served where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// The path of the bundle.
    pub(super) path: String,
    /// How often it should be fetched.
    pub(super) refresh_hint: Duration,
    /// What verifiers that know no SPIFFE are told.
    pub(super) oidc: Option<Oidc>,
}

impl Site {
    /// The answer to the request with this head; `print` is that of this site.
    pub(super) fn answer(&self, head: &Parts, print: &Print) -> Response<Full<Bytes>> {
        if head.method != Method::GET && head.method != Method::HEAD {
            let mut response = respond(head, StatusCode::METHOD_NOT_ALLOWED, TEXT, Bytes::from_static(b"use GET\n"));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if head.uri.path() == self.path {
            return cached(head, print.bundle(), self.refresh_hint / 2);
        }
        if let Some(oidc) = &self.oidc
            && let Some(page) = discovery::asked(oidc, head).and_then(|asked| print.oidc(asked))
        {
            if !discovery::is_for_us(oidc, head) {
                let text = "this host is none of those that are answered for: see web.oidc.allowed_hosts\n";
                return respond(head, StatusCode::MISDIRECTED_REQUEST, TEXT, Bytes::from_static(text.as_bytes()));
            }
            return cached(head, page, self.refresh_hint / 2);
        }
        respond(head, StatusCode::NOT_FOUND, TEXT, Bytes::from_static(b"there is nothing here\n"))
    }
}

/// A JSON document that caches may keep for `age`, or 304 to who has it.
fn cached(head: &Parts, Page { body, tag }: &Page, age: Duration) -> Response<Full<Bytes>> {
    let known = head.headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|tags| tags.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == *tag
    });
    let mut response = if is_known {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        respond(head, StatusCode::OK, JSON, body.clone())
    };
    let headers = response.headers_mut();
    let age = HeaderValue::from_str(&format!("public, max-age={}", age.as_secs()));
    headers.insert(CACHE_CONTROL, age.unwrap_or(HeaderValue::from_static("no-store")));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(ETAG, tag);
    }
    response
}

fn respond(head: &Parts, status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let length = HeaderValue::from(body.len());
    let body = if head.method == Method::HEAD { Bytes::new() } else { body };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::BodyExt as _;
    use spiffe::bundle::Bundle;
    use spiffe::id::TrustDomain;

    use super::*;

    const SITE: fn() -> Site = || Site { path: "/".into(), refresh_hint: Duration::from_secs(300), oidc: None };

    fn own() -> Bundle {
        Bundle::empty(TrustDomain::parse("example.org").unwrap())
    }

    fn ask(method: &str, path: &str, tag: Option<&str>) -> (Response<()>, String) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(tag) = tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let (parts, body) = SITE().answer(&head, &Print::new(&SITE(), &own())).into_parts();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(body.collect()).unwrap().to_bytes();
        (Response::from_parts(parts, ()), String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn the_bundle_is_served_with_what_caches_need() {
        let (response, body) = ask("GET", "/?anything", None);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(response.headers()[CACHE_CONTROL], "public, max-age=150");
        let bundle = Bundle::from_jwks(TrustDomain::parse("example.org").unwrap(), body.as_bytes()).unwrap();
        assert_eq!(bundle.refresh_hint(), Some(Duration::from_secs(300)));
        let (head, nothing) = ask("HEAD", "/", None);
        assert_eq!((head.status().as_u16(), nothing.as_str()), (200, ""));
        assert_eq!(head.headers()[CONTENT_LENGTH], body.len().to_string().as_str());
    }

    #[test]
    fn who_has_it_already_is_told_so() {
        let (first, _) = ask("GET", "/", None);
        let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".into()] {
            let (again, body) = ask("GET", "/", Some(&known));
            assert_eq!((again.status().as_u16(), body.as_str()), (304, ""), "{known}");
            assert_eq!(again.headers()[ETAG], tag.as_str());
        }
        assert_eq!(ask("GET", "/", Some("\"other\"")).0.status(), 200);
    }

    #[test]
    fn discovery_answers_for_its_own_host_only() {
        let issuer = crate::config::Issuer::try_from("https://oidc.example.org".to_owned()).unwrap();
        let oidc = Some(Oidc { issuer, allowed_hosts: vec!["oidc.example.org".into()] });
        let site = Site { oidc, ..SITE() };
        let print = Print::new(&site, &own());
        let ask = |host: &str, path: &str| {
            let request = Request::get(path).header("host", host).body(()).unwrap();
            site.answer(&request.into_parts().0, &print)
        };
        let answer = ask("oidc.example.org", "/keys");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(answer.headers()[CACHE_CONTROL], "public, max-age=150");
        assert_eq!(ask("evil.net", "/keys").status(), 421);
        assert_eq!(ask("evil.net", "/.well-known/openid-configuration").status(), 421);
        assert_eq!(ask("evil.net", "/").status(), 200, "the bundle is the same under any name");
    }

    #[test]
    fn there_is_nothing_else() {
        assert_eq!(ask("GET", "/bundle", None).0.status(), 404);
        assert_eq!(ask("POST", "/", None).0.status(), 405);
        assert_eq!(ask("DELETE", "/bundle", None).0.headers()[ALLOW], "GET, HEAD");
    }
}
