//! What a verifier of JWT-SVIDs finds out from nothing but the issuer's URL: OpenID Connect Discovery 1.0, and the keys as
//! a JWK set (RFC 7517). Pure.
//!
//! - Only under a host that the config allows: a document that names an issuer is an answer for that issuer's host.
//! - Only keys for JWT-SVIDs, with `use: sig` and the `alg` that each signs with: a verifier that knows no SPIFFE takes
//!   nothing else. No root and no key for WIT-SVIDs.
//! - There is no authorization endpoint: nobody logs in here. The member is there, and empty, because verifiers insist.

use std::collections::BTreeSet;

use http::header::HOST;
use http::request::Parts;
use serde::Serialize;
use spiffe::bundle::{Bundle, JwkAuthority};
use spiffe::crypto::jws::Algorithm;
use spiffe::jose::JwkMembers;

use crate::config::Oidc;

/// Where the discovery document is, below the issuer's own path.
const DISCOVERY: &str = "/.well-known/openid-configuration";
/// Where the keys are, below the issuer's own path.
const KEYS: &str = "/keys";

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Discovery,
    Keys,
}

#[derive(Serialize)]
struct Provider<'a> {
    issuer: &'a str,
    jwks_uri: String,
    authorization_endpoint: &'static str,
    response_types_supported: [&'static str; 1],
    subject_types_supported: [&'static str; 1],
    id_token_signing_alg_values_supported: BTreeSet<&'static str>,
}

#[derive(Serialize)]
struct Keys {
    keys: Vec<JwkMembers>,
}

/// Which document the request is for; `None`: neither.
pub(super) fn asked(oidc: &Oidc, head: &Parts) -> Option<Asked> {
    match head.uri.path().strip_prefix(oidc.issuer.path())? {
        DISCOVERY => Some(Asked::Discovery),
        KEYS => Some(Asked::Keys),
        _ => None,
    }
}

/// Whether the request is for a host that may be answered for.
pub(super) fn is_for_us(oidc: &Oidc, head: &Parts) -> bool {
    // HTTP/2 has the host in the URI, HTTP/1 in a header, of which there must be one.
    let mut named = head.headers.get_all(HOST).iter();
    let of_header = match (named.next(), named.next()) {
        (Some(one), None) => one.to_str().ok(),
        _ => None,
    };
    let Some(host) = head.uri.authority().map(http::uri::Authority::as_str).or(of_header) else { return false };
    let after_v6 = host.rfind(']').unwrap_or(0);
    let end = host.get(after_v6..).and_then(|rest| rest.rfind(':')).map_or(host.len(), |colon| after_v6 + colon);
    let host = host.get(..end).unwrap_or_default();
    oidc.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
}

/// The document.
pub(super) fn document(oidc: &Oidc, asked: Asked, bundle: &Bundle) -> String {
    let signing: Vec<(&JwkAuthority, Algorithm)> = bundle
        .jwt_authorities()
        .iter()
        .filter_map(|authority| Some((authority, authority.jwk().algorithm().or(authority.key().usual_algorithm())?)))
        .collect();
    let text = match asked {
        Asked::Discovery => serde_json::to_string_pretty(&Provider {
            issuer: oidc.issuer.as_str(),
            jwks_uri: format!("{}{KEYS}", oidc.issuer.as_str()),
            authorization_endpoint: "",
            response_types_supported: ["id_token"],
            subject_types_supported: ["public"],
            id_token_signing_alg_values_supported: signing.iter().map(|(_, algorithm)| algorithm.name()).collect(),
        }),
        Asked::Keys => {
            let key = |(authority, algorithm): &(&JwkAuthority, Algorithm)| JwkMembers {
                usage: Some("sig".to_owned()),
                alg: Some(algorithm.name().to_owned()),
                ..authority.jwk().members()
            };
            serde_json::to_string_pretty(&Keys { keys: signing.iter().map(key).collect() })
        }
    };
    // Strings and arrays: there is nothing in it that JSON cannot say.
    text.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use serde_json::Value;
    use spiffe::entry::KeyType;
    use spiffe::id::TrustDomain;
    use spiffe::jose::Jwk;

    use super::*;
    use crate::config::Issuer;

    fn oidc(issuer: &str) -> Oidc {
        Oidc { issuer: Issuer::try_from(issuer.to_owned()).unwrap(), allowed_hosts: vec!["oidc.example.org".into()] }
    }

    fn head(path: &str, host: &str) -> Parts {
        Request::get(path).header(HOST, host).body(()).unwrap().into_parts().0
    }

    #[test]
    fn both_documents_stand_below_the_issuers_own_path() {
        let at = |issuer, path| asked(&oidc(issuer), &head(path, "x"));
        let plain = "https://oidc.example.org";
        assert_eq!(at(plain, "/.well-known/openid-configuration?x=y"), Some(Asked::Discovery));
        assert_eq!(at(plain, "/keys"), Some(Asked::Keys));
        assert_eq!(at(plain, "/keys/"), None);
        assert_eq!(at("https://oidc.example.org/prod", "/prod/keys"), Some(Asked::Keys));
        assert_eq!(at("https://oidc.example.org/prod", "/keys"), None);
    }

    #[test]
    fn another_host_is_not_answered_for() {
        let ours = |host: &str| is_for_us(&oidc("https://oidc.example.org"), &head("/keys", host));
        assert!(ours("oidc.example.org") && ours("OIDC.example.org:8443"));
        for other in ["", "example.org", "oidc.example.org.evil.net", "evil.net:oidc.example.org", "[::1]:443"] {
            assert!(!ours(other), "{other}");
        }
        let (mut twice, ()) = Request::get("/keys").header(HOST, "oidc.example.org").body(()).unwrap().into_parts();
        twice.headers.append(HOST, http::HeaderValue::from_static("evil.net"));
        assert!(!is_for_us(&oidc("https://oidc.example.org"), &twice));
        let http_2 = Request::get("https://oidc.example.org/keys").body(()).unwrap().into_parts().0;
        assert!(is_for_us(&oidc("https://oidc.example.org"), &http_2));
    }

    #[test]
    fn a_verifier_that_knows_no_spiffe_finds_keys_and_algorithms() {
        let key = |kind| {
            let pair = spiffe::crypto::generate_key(kind).unwrap();
            let spki = rcgen::PublicKeyData::subject_public_key_info(&pair);
            JwkAuthority::new(Jwk::from_spki(&spki).unwrap()).unwrap()
        };
        let (jwt, wit) = ([key(KeyType::P256), key(KeyType::P384)], key(KeyType::P256));
        let bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
        let bundle = bundle.with_jwk_authorities(jwt.to_vec(), vec![wit]).unwrap();
        let oidc = oidc("https://oidc.example.org");
        let read = |asked| serde_json::from_str::<Value>(&document(&oidc, asked, &bundle)).unwrap();
        let found = read(Asked::Discovery);
        assert_eq!(found["issuer"], "https://oidc.example.org");
        assert_eq!(found["jwks_uri"], "https://oidc.example.org/keys");
        assert_eq!(found["authorization_endpoint"], "");
        assert_eq!(found["id_token_signing_alg_values_supported"], serde_json::json!(["ES256", "ES384"]));
        let keys = read(Asked::Keys)["keys"].as_array().unwrap().clone();
        assert_eq!(keys.len(), 2);
        for (key, (authority, alg)) in keys.iter().zip([(&jwt[0], "ES256"), (&jwt[1], "ES384")]) {
            assert_eq!((key["kid"].as_str(), key["alg"].as_str()), (Some(authority.kid()), Some(alg)));
            assert_eq!((key["use"].as_str(), key["kty"].as_str()), (Some("sig"), Some("EC")));
        }
    }
}
