//! Workload Proof Tokens: who sends a WIT-SVID shows that its key is theirs (draft-ietf-wimse-wpt-02, WIT-SVID.md
//! section 5).
//!
//! - A proof is a JWT with `typ` `wpt+jwt`, signed by the key in the WIT-SVID, by the algorithm that stands there.
//! - It is for one audience (`aud`) and one WIT-SVID (`wth`, its hash); it ends soon (`exp`), [`MAX_PROOF_LIFE`] at most,
//!   and is used once (`jti`).
//! - Other tokens of the request are bound by their hashes: a transaction token (`tth`), and header fields (`oth`). What
//!   the proof names and the request has must be the same, neither more nor less.
//!
//! A service has one [`WitVerifier`], and asks it about each request:
//!
//! ```
//! use std::time::Duration;
//!
//! use rcgen::PublicKeyData;
//! use spiffe::bundle::{Bundle, JwkAuthority};
//! use spiffe::crypto;
//! use spiffe::entry::KeyType;
//! use spiffe::id::TrustDomain;
//! use spiffe::jose::{Jwk, Signer};
//! use spiffe::time::Timestamp;
//! use spiffe::wit_svid::{ConfirmationKey, WitClaims, WitSvid};
//! use spiffe::wpt::{BoundTokens, Request, WitVerifier, WptClaims};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = Timestamp::from_unix(1_800_000_000);
//! let trust_domain = TrustDomain::parse("example.org")?;
//!
//! // The trust domain has a key, and issues a WIT-SVID for the key of a workload.
//! let authority = crypto::generate_key(KeyType::P256)?;
//! let public = Jwk::from_spki(&authority.subject_public_key_info())?;
//! let kid = public.thumbprint();
//! let key = crypto::generate_key(KeyType::P256)?;
//! let claims = WitClaims {
//!     id: trust_domain.member("/web")?,
//!     key: ConfirmationKey::new(&Jwk::from_spki(&key.subject_public_key_info())?)?,
//!     issued_at: now,
//!     expires_at: now.plus(Duration::from_secs(3600)),
//!     jti: None,
//! };
//! let wit = claims.sign(&kid, &Signer::from_pkcs8(&authority.serialize_der())?)?;
//!
//! // The workload sends it with a proof.
//! let audience = "https://reports.example.org/today";
//! let proof = WptClaims {
//!     wit: &WitSvid::parse(&wit)?,
//!     audience,
//!     expires_at: now.plus(Duration::from_secs(30)),
//!     random: crypto::random()?,
//!     tokens: BoundTokens::default(),
//! };
//! let wpt = proof.sign(&Signer::from_pkcs8(&key.serialize_der())?)?;
//!
//! // The service knows the bundle, and whom the request is for.
//! let bundle = Bundle::empty(trust_domain).with_jwk_authorities(Vec::new(), vec![JwkAuthority::new(public)?])?;
//! let verifier = WitVerifier::default();
//! let request = Request { wit: &wit, wpt: &wpt, audience, tokens: BoundTokens::default() };
//! let sender = verifier.verify(&request, &bundle, now)?;
//! assert_eq!(sender.id().as_str(), "spiffe://example.org/web");
//! assert!(verifier.verify(&request, &bundle, now).is_err(), "a proof is used once");
//! # Ok(())
//! # }
//! ```

mod verifier;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

pub use self::verifier::{MAX_PROOFS, MAX_PROOFS_OF_ONE, ProvenWitSvid, WitVerifier};
use crate::crypto;
use crate::crypto::jws::{Algorithm, SignatureError, Signer};
use crate::jose::{self, JwsError, Parsed};
use crate::time::Timestamp;
use crate::token::{LEEWAY, TokenError, moment, shown, text};
use crate::wit_svid::WitSvid;

/// How far ahead a proof may end.
pub const MAX_PROOF_LIFE: Duration = Duration::from_secs(300);
/// The longest `jti` of a proof, in bytes.
pub const MAX_JTI_BYTES: usize = 256;
/// The most tokens that one proof binds beside the WIT-SVID and the transaction token.
pub const MAX_BOUND_TOKENS: usize = 16;

const TYP: &str = "wpt+jwt";

/// Why a WIT-SVID and its proof are not accepted, or no proof is made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WptError {
    /// The WIT-SVID is not accepted.
    #[error(transparent)]
    Wit(TokenError),
    /// The proof cannot be read.
    #[error("proof of possession: {0}")]
    Proof(#[from] TokenError),
    /// The signature of the proof.
    #[error("proof of possession: {0}: it has to be signed by the key in the WIT-SVID")]
    Signature(SignatureError),
    /// It is a token of another kind.
    #[error("proof of possession has typ {0:?}: it has to be wpt+jwt")]
    Kind(String),
    /// It was signed by another algorithm than the WIT-SVID says.
    #[error("proof of possession is signed by {found}: the key in the WIT-SVID signs by {wanted}")]
    Algorithm {
        /// How it is signed.
        found: Algorithm,
        /// What the WIT-SVID says.
        wanted: Algorithm,
    },
    /// There is not one audience.
    #[error("proof of possession has no audience, or several: it has to be for one")]
    NotOneAudience,
    /// It is for somebody else.
    #[error("proof of possession is not for {wanted:?}: it has to be made for this request")]
    OtherAudience {
        /// Whom the request is for.
        wanted: String,
    },
    /// It has ended.
    #[error("proof of possession ended at {expires_at}; it is now {now}: make one for each request")]
    Expired {
        /// The first second at which it does not count.
        expires_at: Timestamp,
        /// The moment of verification.
        now: Timestamp,
    },
    /// It counts from later on.
    #[error("proof of possession is not valid before {not_before}; it is now {now}: are the clocks right?")]
    NotYetValid {
        /// The first valid second.
        not_before: Timestamp,
        /// The moment of verification.
        now: Timestamp,
    },
    /// It ends too late.
    #[error("proof of possession ends at {expires_at}; it is now {now}: it may not last longer than 5 minutes")]
    TooLong {
        /// The first second at which it does not count.
        expires_at: Timestamp,
        /// The moment of verification.
        now: Timestamp,
    },
    /// It has no usable name of its own.
    #[error("proof of possession has a \"jti\" of {0} bytes: it has to have 1 to 256, and 128 bits of chance in them")]
    Jti(usize),
    /// It is for another WIT-SVID.
    #[error("proof of possession is for another WIT-SVID: its \"wth\" is not the hash of the one that came with it")]
    OtherWit,
    /// `oth` is malformed.
    #[error("claim \"oth\" of the proof of possession is no object of at most 16 hashes")]
    OtherTokens,
    /// A token of the request is not the one that the proof names, or one of the two lacks it.
    #[error("proof of possession and request do not have the same {0}: each token has to be bound as it is sent")]
    Token(String),
    /// It was used before.
    #[error("proof of possession was used before: make one for each request")]
    Replayed,
    /// The memory of proofs that were used is full, or the sender's share of it.
    #[error("{0} proofs of possession are remembered already, no more fit: let them end sooner, or try again later")]
    Full(usize),
}

/// The tokens of a request, beside the WIT-SVID and its proof, that say on whose behalf or with what right it comes.
#[derive(Clone, Debug, Default)]
pub struct BoundTokens<'a> {
    /// The transaction token.
    pub transaction: Option<&'a str>,
    /// Header fields with other tokens: names in lower case, values without blanks around them.
    pub headers: BTreeMap<&'a str, &'a str>,
}

/// What came with a request, and whom it is for.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The WIT-SVID, in the compact serialization.
    pub wit: &'a str,
    /// The proof, in the compact serialization.
    pub wpt: &'a str,
    /// Whom it is for: what the service knows of itself, never what the request says. Usually the target URI without
    /// query and fragment.
    pub audience: &'a str,
    /// The other tokens that the service will heed. It must heed no others.
    pub tokens: BoundTokens<'a>,
}

/// What a proof says.
#[derive(Clone, Debug)]
pub struct WptClaims<'a> {
    /// The WIT-SVID whose key is proved.
    pub wit: &'a WitSvid,
    /// Whom the request is for.
    pub audience: &'a str,
    /// The first second at which the proof does not count any more: soon.
    pub expires_at: Timestamp,
    /// Chance, of which the name of the proof is made.
    pub random: [u8; 16],
    /// The other tokens of the request.
    pub tokens: BoundTokens<'a>,
}

impl WptClaims<'_> {
    /// The signed proof. Refused if `signer` is not the private half of the key in the WIT-SVID.
    pub fn sign(&self, signer: &Signer) -> Result<String, WptError> {
        let (found, wanted) = (signer.algorithm(), self.wit.key().algorithm());
        if found != wanted {
            return Err(WptError::Algorithm { found, wanted });
        }
        let mut claims = Map::new();
        claims.insert("aud".into(), json!(self.audience));
        claims.insert("exp".into(), json!(self.expires_at.unix()));
        claims.insert("jti".into(), json!(URL_SAFE_NO_PAD.encode(self.random)));
        claims.insert("wth".into(), json!(hash(self.wit.token())));
        claims.extend(self.tokens.transaction.iter().map(|token| ("tth".into(), json!(hash(token)))));
        if !self.tokens.headers.is_empty() {
            let hashes: Map<_, _> = self.tokens.headers.iter().map(|(name, token)| bound(name, token)).collect();
            claims.insert("oth".into(), Value::Object(hashes));
        }
        let proof = jose::write(TYP, None, &claims, signer).map_err(WptError::Signature)?;
        Wpt::parse(&proof)?.is_signed_for(self.wit)?;
        Ok(proof)
    }
}

/// A proof that has been taken apart. Nobody has looked at its signature yet. Never shown whole by `Debug`.
pub struct Wpt {
    parsed: Parsed,
    audience: String,
    not_before: Option<Timestamp>,
    expires_at: Timestamp,
    jti: String,
    wit_hash: String,
    transaction_hash: Option<String>,
    other_hashes: BTreeMap<String, String>,
}

impl Wpt {
    /// Parses a proof in the compact serialization.
    pub fn parse(token: &str) -> Result<Self, WptError> {
        let parsed = Parsed::read(token).map_err(TokenError::from)?;
        let typ = parsed.header.typ.as_deref().unwrap_or_default();
        // RFC 7515 section 4.1.9: the prefix may be left out.
        if typ.strip_prefix("application/").unwrap_or(typ) != TYP {
            return Err(WptError::Kind(shown(typ)));
        }
        let claims = &parsed.claims;
        let required = |name| text(claims, name)?.map(str::to_owned).ok_or(TokenError::Missing(name));
        let (jti, wit_hash) = (required("jti")?, required("wth")?);
        if !(1..=MAX_JTI_BYTES).contains(&jti.len()) {
            return Err(WptError::Jti(jti.len()));
        }
        let expires_at = moment(claims, "exp")?.ok_or(TokenError::Missing("exp"))?;
        let not_before = moment(claims, "nbf")?;
        let audience = one_audience(claims.get("aud").ok_or(TokenError::Missing("aud"))?)?;
        let transaction_hash = text(claims, "tth")?.map(str::to_owned);
        let other_hashes = claims.get("oth").map_or_else(|| Ok(BTreeMap::new()), other_hashes)?;
        Ok(Self { parsed, audience, not_before, expires_at, jti, wit_hash, transaction_hash, other_hashes })
    }

    /// Whether it proves the key of `wit` for what `request` has beside it, at `now`.
    fn verify(&self, wit: &WitSvid, request: &Request<'_>, now: Timestamp) -> Result<(), WptError> {
        let expires_at = self.expires_at;
        if expires_at.plus(LEEWAY) <= now {
            return Err(WptError::Expired { expires_at, now });
        }
        if expires_at > now.plus(MAX_PROOF_LIFE + LEEWAY) {
            return Err(WptError::TooLong { expires_at, now });
        }
        if let Some(not_before) = self.not_before.filter(|not_before| now.plus(LEEWAY) < *not_before) {
            return Err(WptError::NotYetValid { not_before, now });
        }
        if self.audience != request.audience {
            return Err(WptError::OtherAudience { wanted: shown(request.audience) });
        }
        if self.wit_hash != hash(wit.token()) {
            return Err(WptError::OtherWit);
        }
        self.binds(&request.tokens)?;
        self.is_signed_for(wit)
    }

    fn binds(&self, tokens: &BoundTokens<'_>) -> Result<(), WptError> {
        if self.transaction_hash != tokens.transaction.map(hash) {
            return Err(WptError::Token("transaction token".into()));
        }
        let sent: BTreeMap<_, _> = tokens.headers.iter().map(|(name, token)| (*name, hash(token))).collect();
        let mut names = self.other_hashes.keys().map(String::as_str).chain(sent.keys().copied());
        match names.find(|name| self.other_hashes.get(*name) != sent.get(name)) {
            Some(name) => Err(WptError::Token(format!("token in the header field {:?}", shown(name)))),
            None => Ok(()),
        }
    }

    fn is_signed_for(&self, wit: &WitSvid) -> Result<(), WptError> {
        let (found, wanted) = (self.parsed.header.algorithm, wit.key().algorithm());
        if found != wanted {
            return Err(WptError::Algorithm { found, wanted });
        }
        self.parsed.verify(wit.key().key()).map_err(|error| match error {
            JwsError::Signature(error) => WptError::Signature(error),
            other => WptError::Proof(other.into()),
        })
    }
}

impl fmt::Debug for Wpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Wpt");
        shown.field("audience", &self.audience).field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

fn hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(crypto::sha256(token.as_bytes()))
}

fn bound(name: &str, token: &str) -> (String, Value) {
    (name.to_owned(), json!(hash(token)))
}

fn one_audience(value: &Value) -> Result<String, WptError> {
    let one = match value {
        Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    match one {
        [Value::String(audience)] if !audience.is_empty() => Ok(audience.clone()),
        _ => Err(WptError::NotOneAudience),
    }
}

fn other_hashes(value: &Value) -> Result<BTreeMap<String, String>, WptError> {
    let hashes = value.as_object().filter(|hashes| hashes.len() <= MAX_BOUND_TOKENS).ok_or(WptError::OtherTokens)?;
    let hash = |(name, hash): (&String, &Value)| Some((name.clone(), hash.as_str()?.to_owned()));
    hashes.iter().map(hash).collect::<Option<_>>().ok_or(WptError::OtherTokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::KeyType;
    use crate::id::SpiffeId;
    use crate::test_certificates::NOW;
    use crate::test_tokens::{Key, bundle, seconds};
    use crate::wit_svid::{ConfirmationKey, WitClaims};

    const REPORTS: &str = "https://reports.example.org/today";

    struct Workload {
        key: Key,
        wit: WitSvid,
    }

    impl Workload {
        fn of_kind(kind: KeyType) -> Self {
            let key = Key::of_kind(kind);
            let claims = WitClaims {
                id: SpiffeId::parse("spiffe://example.org/web").unwrap(),
                key: ConfirmationKey::new(key.jwk()).unwrap(),
                issued_at: NOW,
                expires_at: NOW.plus(seconds(3600)),
                jti: None,
            };
            let wit = claims.sign(Key::shared().kid(), Key::shared().signer()).unwrap();
            Self { key, wit: WitSvid::parse(&wit).unwrap() }
        }

        fn claims(&self) -> WptClaims<'_> {
            let expires_at = NOW.plus(seconds(30));
            WptClaims { wit: &self.wit, audience: REPORTS, expires_at, random: [7; 16], tokens: BoundTokens::default() }
        }

        fn proof(&self) -> String {
            self.claims().sign(self.key.signer()).unwrap()
        }

        /// The usual proof with another value for one claim; null: without it.
        fn proof_with(&self, name: &str, value: Value) -> String {
            let mut claims = Value::Object(Wpt::parse(&self.proof()).unwrap().parsed.claims);
            claims[name] = value;
            claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            self.key.sign(&json!({"alg": "ES256", "typ": TYP}), &claims)
        }

        fn accepted(&self, wpt: &str, tokens: BoundTokens<'_>) -> Result<ProvenWitSvid, WptError> {
            let request = Request { wit: self.wit.token(), wpt, audience: REPORTS, tokens };
            WitVerifier::default().verify(&request, &bundle("example.org", &[], &[Key::shared()]), NOW)
        }

        fn refused(&self, wpt: &str) -> WptError {
            self.accepted(wpt, BoundTokens::default()).unwrap_err()
        }
    }

    #[test]
    fn whoever_has_the_key_proves_it() {
        for kind in [KeyType::P256, KeyType::P384] {
            let workload = Workload::of_kind(kind);
            let proof = workload.proof();
            let sender = workload.accepted(&proof, BoundTokens::default()).unwrap();
            assert_eq!(sender.id().as_str(), "spiffe://example.org/web");
            assert_eq!(Wpt::parse(&proof).unwrap().parsed.header.kid, None);
            assert!(!format!("{:?}", Wpt::parse(&proof).unwrap()).contains(&proof), "a proof is not logged");
        }
    }

    #[test]
    fn another_key_proves_nothing_and_makes_no_proof() {
        let (workload, other) = (Workload::of_kind(KeyType::P256), Workload::of_kind(KeyType::P256));
        let stolen = workload.claims().sign(other.key.signer());
        assert_eq!(stolen, Err(WptError::Signature(SignatureError::Wrong)));
        let p384 = Workload::of_kind(KeyType::P384);
        let algorithm = WptError::Algorithm { found: Algorithm::Es384, wanted: Algorithm::Es256 };
        assert_eq!(workload.claims().sign(p384.key.signer()), Err(algorithm.clone()));

        let claims = Value::Object(Wpt::parse(&workload.proof()).unwrap().parsed.claims);
        let forged = other.key.sign(&json!({"alg": "ES256", "typ": TYP}), &claims);
        assert_eq!(workload.refused(&forged), WptError::Signature(SignatureError::Wrong));
        let forged = p384.key.sign(&json!({"alg": "ES384", "typ": TYP}), &claims);
        assert_eq!(workload.refused(&forged), algorithm);
        // The key in the header of the proof is nobody's.
        let jwk = serde_json::to_value(other.key.jwk().members()).unwrap();
        let forged = other.key.sign(&json!({"alg": "ES256", "typ": TYP, "jwk": jwk}), &claims);
        assert_eq!(workload.refused(&forged), WptError::Signature(SignatureError::Wrong));
    }

    #[test]
    fn a_proof_is_for_one_wit_svid_and_one_audience() {
        let (workload, other) = (Workload::of_kind(KeyType::P256), Workload::of_kind(KeyType::P256));
        let for_other = workload.proof_with("wth", json!(hash(other.wit.token())));
        assert_eq!(workload.refused(&for_other), WptError::OtherWit);
        let elsewhere = workload.proof_with("aud", json!("https://other.example.org"));
        assert_eq!(workload.refused(&elsewhere), WptError::OtherAudience { wanted: REPORTS.into() });
        for several in [json!([REPORTS, "https://other.example.org"]), json!([]), json!(""), json!(1)] {
            assert_eq!(workload.refused(&workload.proof_with("aud", several)), WptError::NotOneAudience);
        }
        assert!(workload.accepted(&workload.proof_with("aud", json!([REPORTS])), BoundTokens::default()).is_ok());
    }

    #[test]
    fn a_proof_is_short() {
        let workload = Workload::of_kind(KeyType::P256);
        let ends = |at: Timestamp| workload.accepted(&workload.proof_with("exp", json!(at.unix())), Default::default());
        let longest = NOW.plus(MAX_PROOF_LIFE + LEEWAY);
        assert!(ends(longest).is_ok() && ends(NOW.minus(LEEWAY).plus(seconds(1))).is_ok());
        let late = longest.plus(seconds(1));
        assert_eq!(ends(late).unwrap_err(), WptError::TooLong { expires_at: late, now: NOW });
        let ended = NOW.minus(LEEWAY);
        assert_eq!(ends(ended).unwrap_err(), WptError::Expired { expires_at: ended, now: NOW });
        let not_before = NOW.plus(LEEWAY + seconds(1));
        let error = workload.refused(&workload.proof_with("nbf", json!(not_before.unix())));
        assert_eq!(error, WptError::NotYetValid { not_before, now: NOW });
    }

    #[test]
    fn each_claim_has_its_errors() {
        let workload = Workload::of_kind(KeyType::P256);
        for name in ["aud", "exp", "jti", "wth"] {
            let error = workload.refused(&workload.proof_with(name, Value::Null));
            assert_eq!(error, WptError::Proof(TokenError::Missing(name)));
        }
        assert_eq!(workload.refused(&workload.proof_with("jti", json!(""))), WptError::Jti(0));
        assert_eq!(workload.refused(&workload.proof_with("jti", json!("a".repeat(257)))), WptError::Jti(257));
        let claims = Value::Object(Wpt::parse(&workload.proof()).unwrap().parsed.claims);
        for typ in ["JWT", "wit+jwt", "dpop+jwt", "text/wpt+jwt", ""] {
            let other = workload.key.sign(&json!({"alg": "ES256", "typ": typ}), &claims);
            assert_eq!(workload.refused(&other), WptError::Kind(typ.into()));
        }
        let whole = workload.key.sign(&json!({"alg": "ES256", "typ": "application/wpt+jwt"}), &claims);
        assert!(workload.accepted(&whole, BoundTokens::default()).is_ok());
        // A WIT-SVID is no proof of itself.
        assert_eq!(workload.refused(workload.wit.token()), WptError::Kind("wit+jwt".into()));
    }

    #[test]
    fn other_tokens_are_bound_neither_more_nor_less() {
        let workload = Workload::of_kind(KeyType::P256);
        let user = |token| BoundTokens { headers: BTreeMap::from([("x-user", token)]), ..BoundTokens::default() };
        let transaction = |token| BoundTokens { transaction: Some(token), ..BoundTokens::default() };
        let proof = |tokens| WptClaims { tokens, ..workload.claims() }.sign(workload.key.signer()).unwrap();
        let (of_user, of_transaction) = (proof(user("alice")), proof(transaction("one")));
        assert!(workload.accepted(&of_user, user("alice")).is_ok());
        assert!(workload.accepted(&of_transaction, transaction("one")).is_ok());
        let header = WptError::Token("token in the header field \"x-user\"".into());
        for (proof, sent) in
            [(&of_user, user("bob")), (&of_user, BoundTokens::default()), (&proof(Default::default()), user("bob"))]
        {
            assert_eq!(workload.accepted(proof, sent).unwrap_err(), header);
        }
        let wrong = WptError::Token("transaction token".into());
        assert_eq!(workload.accepted(&of_transaction, transaction("two")).unwrap_err(), wrong);
        assert_eq!(workload.refused(&of_transaction), wrong);
        assert_eq!(workload.accepted(&workload.proof(), transaction("one")).unwrap_err(), wrong);
        for malformed in [json!("a"), json!({"a": 1})] {
            assert_eq!(workload.refused(&workload.proof_with("oth", malformed)), WptError::OtherTokens);
        }
    }
}
