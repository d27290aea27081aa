//! Verifies WIT-SVIDs with their proofs, and remembers which proofs were used.
//!
//! - A proof is remembered, by its sender and its `jti`, until it has ended: it is used once.
//! - At most [`MAX_PROOFS`] are remembered. When no more fit, proofs are refused: forgetting one would let it be used
//!   again. Only who has a WIT-SVID can fill the memory.
//! - The memory is that of one process: a service of several replicas that must not take a proof twice shares one.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::{Request, Wpt, WptError};
use crate::bundle::Bundle;
use crate::crypto;
use crate::time::Timestamp;
use crate::token::LEEWAY;
use crate::wit_svid::{VerifiedWitSvid, WitSvid};

/// The most proofs that are remembered at a time.
pub const MAX_PROOFS: usize = 100_000;

/// A [`VerifiedWitSvid`] whose sender proved that the key in it is theirs: who sent the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenWitSvid(VerifiedWitSvid);

impl std::ops::Deref for ProvenWitSvid {
    type Target = VerifiedWitSvid;
    fn deref(&self) -> &VerifiedWitSvid {
        &self.0
    }
}

/// Verifies the WIT-SVIDs that are sent to one service. Shared by all of its tasks.
#[derive(Debug)]
pub struct WitVerifier {
    used: Mutex<Used>,
}

impl Default for WitVerifier {
    fn default() -> Self {
        Self::with_most(MAX_PROOFS)
    }
}

impl WitVerifier {
    fn with_most(most: usize) -> Self {
        Self { used: Mutex::new(Used { most, names: BTreeSet::new(), ends: BTreeSet::new() }) }
    }

    /// Who sent `request`: the WIT-SVID is one of `bundle`'s trust domain, its key was proved for this request and
    /// nothing else, and the proof was not used before.
    pub fn verify(&self, request: &Request<'_>, bundle: &Bundle, now: Timestamp) -> Result<ProvenWitSvid, WptError> {
        let wit = WitSvid::parse(request.wit).and_then(|wit| wit.verify(bundle, now)).map_err(WptError::Wit)?;
        let proof = Wpt::parse(request.wpt)?;
        proof.verify(&wit, request, now)?;
        let name = crypto::sha256(format!("{}\0{}", wit.id().as_str(), proof.jti).as_bytes());
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.add(name, proof.expires_at.plus(LEEWAY), now)?;
        Ok(ProvenWitSvid(wit))
    }
}

/// The names of the proofs that were used and have not ended.
#[derive(Debug)]
struct Used {
    most: usize,
    names: BTreeSet<[u8; 32]>,
    /// The same by their ends.
    ends: BTreeSet<(Timestamp, [u8; 32])>,
}

impl Used {
    fn add(&mut self, name: [u8; 32], ends_at: Timestamp, now: Timestamp) -> Result<(), WptError> {
        while let Some((_, ended)) = self.ends.first().filter(|(ends_at, _)| *ends_at <= now).copied() {
            self.ends.pop_first();
            self.names.remove(&ended);
        }
        if self.names.contains(&name) {
            return Err(WptError::Replayed);
        }
        if self.names.len() >= self.most {
            return Err(WptError::Full(self.most));
        }
        self.names.insert(name);
        self.ends.insert((ends_at, name));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::KeyType;
    use crate::id::SpiffeId;
    use crate::test_certificates::NOW;
    use crate::test_tokens::{Key, bundle, seconds};
    use crate::token::TokenError;
    use crate::wit_svid::{ConfirmationKey, WitClaims};
    use crate::wpt::{BoundTokens, WptClaims};

    const REPORTS: &str = "reports";

    fn wit(key: &Key, path: &str) -> WitSvid {
        let claims = WitClaims {
            id: SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap(),
            key: ConfirmationKey::new(key.jwk()).unwrap(),
            issued_at: NOW,
            expires_at: NOW.plus(seconds(60)),
            jti: Some("the same for all".into()),
        };
        WitSvid::parse(&claims.sign(Key::shared().kid(), Key::shared().signer()).unwrap()).unwrap()
    }

    fn proof(wit: &WitSvid, key: &Key, random: u8) -> String {
        let expires_at = NOW.plus(seconds(30));
        let claims =
            WptClaims { wit, audience: REPORTS, expires_at, random: [random; 16], tokens: BoundTokens::default() };
        claims.sign(key.signer()).unwrap()
    }

    fn at(verifier: &WitVerifier, wit: &WitSvid, wpt: &str, now: Timestamp) -> Result<ProvenWitSvid, WptError> {
        let request = Request { wit: wit.token(), wpt, audience: REPORTS, tokens: BoundTokens::default() };
        verifier.verify(&request, &bundle("example.org", &[], &[Key::shared()]), now)
    }

    #[test]
    fn a_proof_is_used_once_and_a_wit_svid_again_and_again() {
        let (key, verifier) = (Key::of_kind(KeyType::P256), WitVerifier::default());
        let web = wit(&key, "/web");
        let (first, second) = (proof(&web, &key, 1), proof(&web, &key, 2));
        assert!(at(&verifier, &web, &first, NOW).is_ok());
        assert_eq!(at(&verifier, &web, &first, NOW.plus(seconds(34))), Err(WptError::Replayed));
        assert!(at(&verifier, &web, &second, NOW).is_ok());
        // Signed anew it is the same proof.
        assert_eq!(at(&verifier, &web, &proof(&web, &key, 2), NOW), Err(WptError::Replayed));
        // Another sender has names of its own.
        let other = wit(&key, "/other");
        assert!(at(&verifier, &other, &proof(&other, &key, 2), NOW).is_ok());
        assert!(matches!(at(&verifier, &web, &first, NOW.plus(seconds(35))), Err(WptError::Expired { .. })));
    }

    #[test]
    fn a_full_memory_refuses_and_forgets_what_has_ended() {
        let (key, verifier) = (Key::of_kind(KeyType::P256), WitVerifier::with_most(2));
        let web = wit(&key, "/web");
        let proofs: Vec<_> = (0..3).map(|random| proof(&web, &key, random)).collect();
        assert!(at(&verifier, &web, &proofs[0], NOW).is_ok() && at(&verifier, &web, &proofs[1], NOW).is_ok());
        assert_eq!(at(&verifier, &web, &proofs[2], NOW), Err(WptError::Full(2)));
        assert_eq!(at(&verifier, &web, &proofs[0], NOW), Err(WptError::Replayed));
        let mut used = verifier.used.lock().unwrap();
        assert_eq!(used.add([9; 32], NOW.plus(seconds(99)), NOW.plus(seconds(35))), Ok(()));
        assert_eq!((used.names.len(), used.ends.len()), (1, 1));
    }

    #[test]
    fn a_wit_svid_that_has_ended_is_proved_by_nothing() {
        let key = Key::of_kind(KeyType::P256);
        let web = wit(&key, "/web");
        let late = NOW.plus(seconds(65));
        let error = at(&WitVerifier::default(), &web, &proof(&web, &key, 1), late).unwrap_err();
        assert!(matches!(error, WptError::Wit(TokenError::Expired { .. })), "{error}");
    }

    proptest! {
        #[test]
        fn nothing_is_used_twice_before_its_end_and_the_memory_stays_bounded(
            asked in prop::collection::vec((0_u8..8, 0_u64..20, 0_u64..4), 0..64),
        ) {
            let mut used = Used { most: 4, names: BTreeSet::new(), ends: BTreeSet::new() };
            let (mut now, mut taken) = (NOW, Vec::new());
            for (name, life, passes) in asked {
                now = now.plus(seconds(passes));
                let end = now.plus(seconds(life));
                let result = used.add([name; 32], end, now);
                let known = taken.iter().any(|(taken, end)| *taken == name && *end > now);
                match result {
                    Ok(()) => { prop_assert!(!known); taken.push((name, end)); }
                    Err(WptError::Replayed) => prop_assert!(known),
                    Err(_) => prop_assert_eq!(used.names.len(), 4),
                }
                prop_assert!(used.names.len() <= 4 && used.names.len() == used.ends.len());
            }
        }
    }
}
