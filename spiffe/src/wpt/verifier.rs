//! Verifies WIT-SVIDs with their proofs, and remembers which proofs were used.
//!
//! - A proof is remembered, by its sender and its `jti`, until it has ended: it is used once.
//! - At most [`MAX_PROOFS`] are remembered, and [`MAX_PROOFS_OF_ONE`] of one sender: who sends too many holds up nobody
//!   else. When no more fit, proofs are refused: forgetting one would let it be used again.
//! - The memory is that of one process: a service of several replicas that must not take a proof twice shares one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use super::{Request, Wpt, WptError};
use crate::bundle::Bundle;
use crate::crypto;
use crate::id::SpiffeId;
use crate::time::Timestamp;
use crate::token::LEEWAY;
use crate::wit_svid::{VerifiedWitSvid, WitSvid};

/// The most proofs that are remembered at a time.
pub const MAX_PROOFS: usize = 100_000;
/// The most of one sender.
pub const MAX_PROOFS_OF_ONE: usize = 10_000;

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
        Self { used: Mutex::new(Used::new(MAX_PROOFS, MAX_PROOFS_OF_ONE)) }
    }
}

impl WitVerifier {
    /// Who sent `request`: the WIT-SVID is one of `bundle`'s trust domain, its key was proved for this request and
    /// nothing else, and the proof was not used before.
    pub fn verify(&self, request: &Request<'_>, bundle: &Bundle, now: Timestamp) -> Result<ProvenWitSvid, WptError> {
        let wit = WitSvid::parse(request.wit).and_then(|wit| wit.verify(bundle, now)).map_err(WptError::Wit)?;
        let proof = Wpt::parse(request.wpt)?;
        proof.verify(&wit, request, now)?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.add(wit.id(), &proof.jti, proof.expires_at.plus(LEEWAY), now)?;
        Ok(ProvenWitSvid(wit))
    }
}

type Name = [u8; 32];

/// The names of the proofs that were used and have not ended.
#[derive(Debug)]
struct Used {
    most: usize,
    most_of_one: usize,
    names: BTreeSet<Name>,
    /// The same by their ends, with their senders.
    ends: BTreeMap<(Timestamp, Name), SpiffeId>,
    /// How many each sender has; nobody has none.
    senders: BTreeMap<SpiffeId, usize>,
}

impl Used {
    fn new(most: usize, most_of_one: usize) -> Self {
        let (names, ends, senders) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        Self { most, most_of_one, names, ends, senders }
    }

    fn add(&mut self, sender: &SpiffeId, jti: &str, ends_at: Timestamp, now: Timestamp) -> Result<(), WptError> {
        self.forget_ended(now);
        let name = crypto::sha256(format!("{}\0{jti}", sender.as_str()).as_bytes());
        if self.names.contains(&name) {
            return Err(WptError::Replayed);
        }
        if self.names.len() >= self.most {
            return Err(WptError::Full(self.most));
        }
        let of_one = self.senders.entry(sender.clone()).or_default();
        if *of_one >= self.most_of_one {
            return Err(WptError::Full(self.most_of_one));
        }
        *of_one += 1;
        self.names.insert(name);
        self.ends.insert((ends_at, name), sender.clone());
        Ok(())
    }

    fn forget_ended(&mut self, now: Timestamp) {
        while let Some(first) = self.ends.first_entry().filter(|first| first.key().0 <= now) {
            let ((_, name), sender) = first.remove_entry();
            self.names.remove(&name);
            if let Some(count) = self.senders.get_mut(&sender) {
                *count -= 1;
                if *count == 0 {
                    self.senders.remove(&sender);
                }
            }
        }
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
        let key = Key::of_kind(KeyType::P256);
        let verifier = WitVerifier { used: Mutex::new(Used::new(3, 2)) };
        let web = wit(&key, "/web");
        let proofs: Vec<_> = (0..3).map(|random| proof(&web, &key, random)).collect();
        assert!(at(&verifier, &web, &proofs[0], NOW).is_ok() && at(&verifier, &web, &proofs[1], NOW).is_ok());
        assert_eq!(at(&verifier, &web, &proofs[2], NOW), Err(WptError::Full(2)));
        assert_eq!(at(&verifier, &web, &proofs[0], NOW), Err(WptError::Replayed));
        // Others have places of their own, as long as there are any.
        let (other, third) = (wit(&key, "/other"), wit(&key, "/third"));
        assert!(at(&verifier, &other, &proof(&other, &key, 0), NOW).is_ok());
        assert_eq!(at(&verifier, &third, &proof(&third, &key, 0), NOW), Err(WptError::Full(3)));
        let mut used = verifier.used.lock().unwrap();
        assert_eq!(used.add(third.id(), "9", NOW.plus(seconds(99)), NOW.plus(seconds(35))), Ok(()));
        assert_eq!((used.names.len(), used.ends.len(), used.senders.len()), (1, 1, 1));
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
            asked in prop::collection::vec((0_u8..3, 0_u8..4, 0_u64..20, 0_u64..4), 0..64),
        ) {
            let mut used = Used::new(4, 2);
            let (mut now, mut taken) = (NOW, Vec::new());
            for (sender, jti, life, passes) in asked {
                now = now.plus(seconds(passes));
                let end = now.plus(seconds(life));
                let id = SpiffeId::parse(&format!("spiffe://example.org/{sender}")).unwrap();
                let result = used.add(&id, &jti.to_string(), end, now);
                taken.retain(|(_, _, end)| *end > now);
                let known = taken.iter().any(|(of, name, _)| (*of, *name) == (sender, jti));
                let of_one = taken.iter().filter(|(of, _, _)| *of == sender).count();
                match result {
                    Ok(()) => { prop_assert!(!known); taken.push((sender, jti, end)); }
                    Err(WptError::Replayed) => prop_assert!(known),
                    Err(_) => prop_assert!(taken.len() == 4 || of_one == 2),
                }
                prop_assert!(used.names.len() <= 4 && used.names.len() == used.ends.len());
                prop_assert_eq!(used.senders.values().sum::<usize>(), used.names.len());
            }
        }
    }
}
