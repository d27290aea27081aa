//! Join tokens: an operator makes one, the node shows it once.
//!
//! - A token is `chy-` and 256 random bits in base32 (RFC 4648, lower case, no padding): 56 characters.
//! - The server keeps only its SHA-256. To look a token up by its hash says nothing about it, however long it takes.
//! - It is used once: the commit that records the node deletes it, or fails.
//! - It is no part of any identity: the node's name is random.

use async_trait::async_trait;
use spiffe::crypto::{hex, sha256_hex};
use spiffe::selector::Selectors;

use super::{Attempt, AttestError, Attested, NodeAttestor, Step, in_words};

/// The name of this kind.
pub const KIND: &str = "join_token";

/// What each token begins with, so that people and secret scanners know one when they see it.
pub const PREFIX: &str = "chy-";

/// How many characters of a token's hash name it in lists.
pub const ID_CHARACTERS: usize = 16;

const TOKEN_BYTES: usize = PREFIX.len() + 52;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Why a join token is no good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not the form of a token.
    #[error("that is no join token: one begins with \"chy-\" and has 56 characters. Paste it whole")]
    Malformed,
    /// Never made, used already, or revoked.
    #[error("join token is not known (used already, or revoked): create another with \"chancery token create\"")]
    Unknown,
    /// Too late.
    #[error("join token expired {0} ago: create another with \"chancery token create\"")]
    Expired(String),
}

/// The token that `random` bytes make.
pub fn generate(random: [u8; 32]) -> String {
    let mut token = String::with_capacity(TOKEN_BYTES);
    token.push_str(PREFIX);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in random {
        bits = bits << 8 | u32::from(byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            token.push(letter(bits >> held));
        }
    }
    // The last bit of 256, and four zeros.
    token.push(letter(bits << (5 - held)));
    token
}

fn letter(bits: u32) -> char {
    char::from(ALPHABET[(bits & 31) as usize])
}

/// The hash under which `token` is kept, lower-case hexadecimal.
pub fn hash(token: &str) -> String {
    sha256_hex(token.as_bytes())
}

/// Takes tokens.
#[derive(Clone, Copy, Debug)]
pub struct JoinTokenAttestor;

#[async_trait]
impl NodeAttestor for JoinTokenAttestor {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn start(&self, attempt: Attempt<'_>) -> Result<Step, AttestError> {
        Ok(Step::Done(check(&attempt)?))
    }
}

fn check(attempt: &Attempt<'_>) -> Result<Attested, TokenError> {
    let token = std::str::from_utf8(attempt.evidence).map_err(|_| TokenError::Malformed)?.trim();
    let body = token.strip_prefix(PREFIX).ok_or(TokenError::Malformed)?;
    if token.len() != TOKEN_BYTES || !body.bytes().all(|byte| ALPHABET.contains(&byte)) {
        return Err(TokenError::Malformed);
    }
    let hash = hash(token);
    let known = (attempt.token)(&hash).ok_or(TokenError::Unknown)?;
    if attempt.now >= known.expires_at {
        return Err(TokenError::Expired(in_words(attempt.now.since(known.expires_at))));
    }
    let (name, _) = attempt.nonce.split_at(16);
    Ok(Attested {
        node: hex(name),
        selectors: Selectors::default(),
        token: Some(hash),
        alias: known.alias,
        may_reattest: false,
    })
}

#[cfg(test)]
mod tests {
    use spiffe::id::SpiffeId;
    use spiffe::time::Timestamp;

    use super::super::Token;
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_000_000);

    fn attempt(evidence: &[u8], known: Option<(&str, u64)>) -> Result<Attested, String> {
        let alias = SpiffeId::parse("spiffe://example.org/racks").unwrap();
        let lookup = |hash: &str| {
            let (token, expires_at) = known?;
            (super::hash(token) == hash)
                .then(|| Token { expires_at: Timestamp::from_unix(expires_at), alias: Some(alias.clone()) })
        };
        check(&Attempt { evidence, csr_der: b"", now: NOW, nonce: [0xcd; 32], token: &lookup })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_is_readable_and_whole() {
        assert_eq!(generate([0; 32]), format!("chy-{}", "a".repeat(52)));
        // RFC 4648 of 32 bytes of 0xff: 51 times all ones, then one bit and four zeros.
        assert_eq!(generate([0xff; 32]), format!("chy-{}q", "7".repeat(51)));
        let mut bytes = [0; 32];
        bytes[..6].copy_from_slice(b"foobar");
        assert!(generate(bytes).starts_with("chy-mzxw6ytboi"), "RFC 4648 section 10");
    }

    #[test]
    fn a_good_token_names_a_random_node_and_is_to_be_deleted() {
        let token = generate([7; 32]);
        let attested = attempt(format!("{token}\n").as_bytes(), Some((&token, 1_000_001))).unwrap();
        assert_eq!(attested.node, "cd".repeat(16));
        assert_eq!(attested.token, Some(hash(&token)));
        assert_eq!(attested.alias.unwrap().as_str(), "spiffe://example.org/racks");
        assert!(!attested.may_reattest && !attested.node.contains(&token));
    }

    #[test]
    fn an_expired_an_unknown_and_a_broken_token_each_say_what_to_do() {
        let token = generate([7; 32]);
        assert_eq!(
            attempt(token.as_bytes(), Some((&token, 1_000_000 - 200))).unwrap_err(),
            "join token expired 3 minutes ago: create another with \"chancery token create\""
        );
        assert_eq!(
            attempt(token.as_bytes(), Some((&token, 1_000_000))).unwrap_err(),
            "join token expired 0 seconds ago: create another with \"chancery token create\""
        );
        assert_eq!(
            attempt(token.as_bytes(), None).unwrap_err(),
            "join token is not known (used already, or revoked): create another with \"chancery token create\""
        );
        let upper = token.to_uppercase();
        for broken in [&b""[..], b"chy-", b"\xff", upper.as_bytes(), &token.as_bytes()[1..], &[b'a'; 1 << 20]] {
            assert!(attempt(broken, None).unwrap_err().starts_with("that is no join token: one begins with"));
        }
    }
}
