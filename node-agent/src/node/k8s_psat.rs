//! The proof by the token of the agent's service account: a projected one, for an audience of the server's own, which the API
//! server binds to the agent's pod. The kubelet renews the file.
//!
//! - Evidence: JSON `{"cluster":"<name>","token":"<jwt>"}`. The server's config names clusters.

use std::path::Path;

use serde::Serialize;
use zeroize::Zeroizing;

use super::{NodeError, folder};

/// The server reads no more evidence than 16 KiB, the name of the cluster among it.
const MAX_TOKEN_BYTES: usize = 15 << 10;

#[derive(Serialize)]
struct Evidence<'a> {
    cluster: &'a str,
    token: &'a str,
}

/// What is sent: with the token that is in the file now.
pub fn evidence(cluster: &str, token_path: &Path) -> Result<Zeroizing<Vec<u8>>, NodeError> {
    let wrong = |why: &str| NodeError::Content { path: token_path.to_owned(), why: why.into() };
    let content = folder::read(token_path)?.ok_or_else(|| {
        wrong("there is no such file: mount a projected token for the audience that the server's config names, and give its path as attest.token_path")
    })?;
    let content = content.trim_ascii();
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let token =
        std::str::from_utf8(content).ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| is_token(&byte)));
    let token = token.filter(|token| token.len() <= MAX_TOKEN_BYTES);
    let token = token.ok_or_else(|| wrong("what is in it is no token of a service account"))?;
    // Both have nothing in them that JSON would write in another way, or that could not be written.
    let evidence = serde_json::to_vec(&Evidence { cluster, token }).map(Zeroizing::new);
    evidence.map_err(|error| wrong(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_as_it_is_with_the_name_of_its_cluster() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("token");
        std::fs::write(&path, "ab.c-d.e_f\n").unwrap();
        assert_eq!(&**evidence("eu-1", &path).unwrap(), br#"{"cluster":"eu-1","token":"ab.c-d.e_f"}"#);
        for wrong in ["", "\n", "a b", "a\"b", "\u{e9}", &"a".repeat(MAX_TOKEN_BYTES + 1)] {
            std::fs::write(&path, wrong).unwrap();
            let error = evidence("eu-1", &path).unwrap_err();
            assert!(error.to_string().contains("no token of a service account") && !error.is_transient(), "{error}");
        }
    }
}
