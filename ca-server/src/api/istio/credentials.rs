//! What the headers of a request say of its caller, before anybody is asked whether it is true. Pure.
//!
//! - Exactly one header `authorization`, a bearer token of at most [`MAX_TOKEN_BYTES`]: of two, one would be looked at here
//!   and the other one perhaps by somebody in between.
//! - At most one header `clusterid`, and only a cluster that the config names.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue};

use crate::config::MAX_CLUSTER_BYTES;

/// The longest token, in bytes: a projected token of a service account has about 1,200.
pub(super) const MAX_TOKEN_BYTES: usize = 8 << 10;

const AUTHORIZATION: &str = "authorization";
const CLUSTER: &str = "clusterid";
const BEARER: &str = "Bearer ";

/// Why headers say nothing that could be true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CredentialError {
    #[error("the caller brought neither a bearer token nor a certificate that counts here")]
    None,
    #[error("the header authorization is there {0} times: once is allowed")]
    Several(usize),
    #[error("the header authorization holds no bearer token")]
    NotBearer,
    #[error("the bearer token has {0} bytes: 1 to {MAX_TOKEN_BYTES} are allowed")]
    Length(usize),
    #[error("the header clusterid is there {0} times: once is allowed")]
    SeveralClusters(usize),
    #[error("the caller names no cluster, and istio.default_cluster is not set")]
    NoCluster,
    #[error("the caller says that it is of cluster {0:?}, which istio.clusters does not name")]
    UnknownCluster(String),
}

/// The bearer token.
pub(super) fn token(headers: &HeaderMap) -> Result<&str, CredentialError> {
    let mut found = headers.get_all(AUTHORIZATION).iter();
    let value = found.next().ok_or(CredentialError::None)?;
    match found.count() {
        0 => {}
        more => return Err(CredentialError::Several(1 + more)),
    }
    let text = value.to_str().map_err(|_| CredentialError::NotBearer)?;
    let token = text.strip_prefix(BEARER).ok_or(CredentialError::NotBearer)?;
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        return Err(CredentialError::Length(token.len()));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CredentialError::NotBearer);
    }
    Ok(token)
}

/// The caller's cluster by our name: `names` has ours by those that callers give, `default` is that of a caller that gives
/// none.
pub(super) fn cluster<'a>(
    headers: &HeaderMap,
    names: &'a BTreeMap<String, String>,
    default: Option<&'a str>,
) -> Result<&'a str, CredentialError> {
    let mut found = headers.get_all(CLUSTER).iter();
    let value = found.next().map(HeaderValue::as_bytes).unwrap_or_default();
    match found.count() {
        0 => {}
        more => return Err(CredentialError::SeveralClusters(1 + more)),
    }
    if value.is_empty() {
        return default.ok_or(CredentialError::NoCluster);
    }
    let known = std::str::from_utf8(value).ok().and_then(|name| names.get(name));
    known.map(String::as_str).ok_or_else(|| {
        let shown = value.get(..value.len().min(MAX_CLUSTER_BYTES)).unwrap_or_default();
        CredentialError::UnknownCluster(String::from_utf8_lossy(shown).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let mut map = HeaderMap::new();
        for (name, value) in pairs.iter().map(header) {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn one_bearer_token_and_no_more() {
        let of = |pairs: &[(&'static str, &str)]| token(&headers(pairs)).map(str::to_owned);
        assert_eq!(of(&[("authorization", "Bearer a.b-c_d")]).as_deref(), Ok("a.b-c_d"));
        assert_eq!(of(&[]), Err(CredentialError::None));
        let two = [("authorization", "Bearer a"), ("authorization", "Bearer a")];
        assert_eq!(of(&two), Err(CredentialError::Several(2)));
        let another = [("authorization", "Basic a"), ("authorization", "Bearer a")];
        assert_eq!(of(&another), Err(CredentialError::Several(2)));
        for other in ["Basic a", "a", "bearer a", "Bearer a b", "Bearer  a", "Bearer\ta"] {
            assert_eq!(of(&[("authorization", other)]), Err(CredentialError::NotBearer), "{other}");
        }
        assert_eq!(of(&[("authorization", "Bearer ")]), Err(CredentialError::Length(0)));
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
        assert_eq!(of(&[("authorization", &long)]), Err(CredentialError::Length(MAX_TOKEN_BYTES + 1)));
    }

    #[test]
    fn only_clusters_of_the_config_are_known() {
        let names: BTreeMap<String, String> =
            [("Kubernetes", "main"), ("east", "east")].map(|(theirs, ours)| (theirs.into(), ours.into())).into();
        let of = |pairs: &[(&'static str, &str)], default| cluster(&headers(pairs), &names, default).map(str::to_owned);
        assert_eq!(of(&[("clusterid", "Kubernetes")], None).as_deref(), Ok("main"));
        assert_eq!(of(&[], Some("main")).as_deref(), Ok("main"));
        assert_eq!(of(&[("clusterid", "")], Some("main")).as_deref(), Ok("main"));
        assert_eq!(of(&[], None), Err(CredentialError::NoCluster));
        // Ours is none of theirs.
        assert_eq!(of(&[("clusterid", "main")], Some("main")), Err(CredentialError::UnknownCluster("main".into())));
        let two = [("clusterid", "east"), ("clusterid", "east")];
        assert_eq!(of(&two, None), Err(CredentialError::SeveralClusters(2)));
        let long = "x".repeat(5000);
        let Err(CredentialError::UnknownCluster(shown)) = of(&[("clusterid", &long)], None) else { panic!("known") };
        assert_eq!(shown.len(), MAX_CLUSTER_BYTES);
    }

    proptest! {
        #[test]
        fn no_value_of_a_header_makes_it_panic(value: Vec<u8>) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut map = HeaderMap::new();
                map.append(AUTHORIZATION, value.clone());
                map.append(CLUSTER, value);
                let _ = token(&map);
                let _ = cluster(&map, &BTreeMap::new(), None);
            }
        }
    }
}
