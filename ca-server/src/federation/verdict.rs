//! What the answer of an endpoint means beside the bundle that is known (SPIFFE_Federation.md section 4.2). Pure.
//!
//! - **Same keys, nothing new.** An answer with the same keys and no greater sequence number is no news, whichever of
//!   several servers behind one address gave it.
//! - **Never back.** Other keys under a smaller sequence number are refused: the last good bundle stays.
//! - **Without a number the latest wins.** So it does where the number stayed although the keys changed, which the
//!   standard forbids: whoever published it is told by our log.
//! - **Empty is a word.** A bundle without keys is a revocation of all of them: it is taken, and said aloud.

use std::collections::BTreeSet;

use spiffe::bundle::Bundle;

/// What to do with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Unchanged,
    /// Store it.
    Take(Bundle, Remark),
    /// Refuse it: it is older than what is known.
    Back {
        /// The sequence number that is known.
        held: u64,
        /// The one that came.
        offered: u64,
    },
}

/// What there is to say of a bundle that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remark {
    /// Nothing.
    Plain,
    /// It has no keys: nothing of the trust domain is trusted from now on.
    Emptied,
    /// Its keys are others, and its sequence number is the same.
    SameSequence,
}

/// Judges what was `offered` where `held` is known. A sequence number of 0 is none.
pub(super) fn judge(held: Option<&Bundle>, offered: Bundle) -> Verdict {
    let emptied = if is_empty(&offered) { Remark::Emptied } else { Remark::Plain };
    let Some(held) = held else { return Verdict::Take(offered, emptied) };
    let same_keys = keys(held) == keys(&offered);
    let (before, after) = (held.sequence(), offered.sequence());
    if same_keys && (after <= before || after == 0) && (held.refresh_hint() == offered.refresh_hint() || after < before)
    {
        return Verdict::Unchanged;
    }
    if !same_keys && after > 0 && after < before {
        return Verdict::Back { held: before, offered: after };
    }
    let same_sequence = !same_keys && after > 0 && after == before;
    let remark = if same_sequence && emptied == Remark::Plain { Remark::SameSequence } else { emptied };
    Verdict::Take(offered, remark)
}

/// Whether nobody can be verified by it.
fn is_empty(bundle: &Bundle) -> bool {
    keys(bundle).is_empty()
}

/// The keys and what each is for, whatever their order.
fn keys(bundle: &Bundle) -> BTreeSet<(&'static str, Vec<u8>)> {
    let x509 = bundle.x509_authorities().iter().map(|authority| ("x509", authority.der().to_vec()));
    let jwt = bundle.jwt_authorities().iter().map(|authority| ("jwt", authority.jwk().to_json().into_bytes()));
    let wit = bundle.wit_authorities().iter().map(|authority| ("wit", authority.jwk().to_json().into_bytes()));
    x509.chain(jwt).chain(wit).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    use proptest::prelude::*;
    use spiffe::bundle::X509Authority;
    use spiffe::entry::KeyType;
    use spiffe::id::TrustDomain;

    use super::*;

    static ROOTS: LazyLock<Vec<X509Authority>> = LazyLock::new(|| {
        let root = |_| {
            let mut wish = rcgen::CertificateParams::default();
            wish.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = spiffe::crypto::generate_key(KeyType::P256).unwrap();
            X509Authority::from_der(wish.self_signed(&key).unwrap().der().clone()).unwrap()
        };
        (0..3).map(root).collect()
    });

    fn bundle(roots: &[usize], sequence: u64) -> Bundle {
        let roots = roots.iter().map(|root| ROOTS[*root].clone()).collect();
        Bundle::new(TrustDomain::parse("other.org").unwrap(), roots, sequence, None).unwrap()
    }

    #[test]
    fn the_first_answer_is_taken() {
        assert_eq!(judge(None, bundle(&[0], 0)), Verdict::Take(bundle(&[0], 0), Remark::Plain));
    }

    #[test]
    fn same_keys_are_no_news_whichever_server_says_so() {
        let held = bundle(&[0, 1], 7);
        for (roots, sequence) in [([0, 1], 7), ([1, 0], 7), ([0, 1], 3), ([0, 1], 0)] {
            assert_eq!(judge(Some(&held), bundle(&roots, sequence)), Verdict::Unchanged, "{sequence}");
        }
        // A greater number is kept, so that what lies between is refused from now on.
        assert!(matches!(judge(Some(&held), bundle(&[0, 1], 8)), Verdict::Take(_, Remark::Plain)));
        let slower = bundle(&[0, 1], 7).with_refresh_hint(Some(Duration::from_secs(60)));
        assert!(matches!(judge(Some(&held), slower), Verdict::Take(_, Remark::Plain)));
    }

    #[test]
    fn a_sequence_that_goes_back_is_refused() {
        assert_eq!(judge(Some(&bundle(&[0, 1], 7)), bundle(&[0], 6)), Verdict::Back { held: 7, offered: 6 });
        assert_eq!(judge(Some(&bundle(&[0, 1], 7)), bundle(&[], 6)), Verdict::Back { held: 7, offered: 6 });
    }

    #[test]
    fn without_a_number_the_latest_wins() {
        assert!(matches!(judge(Some(&bundle(&[0], 7)), bundle(&[1], 0)), Verdict::Take(_, Remark::Plain)));
        assert!(matches!(judge(Some(&bundle(&[0], 0)), bundle(&[1], 1)), Verdict::Take(_, Remark::Plain)));
        assert!(matches!(judge(Some(&bundle(&[0], 7)), bundle(&[1], 7)), Verdict::Take(_, Remark::SameSequence)));
    }

    #[test]
    fn an_empty_bundle_is_taken_and_said_aloud() {
        assert_eq!(judge(Some(&bundle(&[0], 7)), bundle(&[], 8)), Verdict::Take(bundle(&[], 8), Remark::Emptied));
        assert_eq!(judge(Some(&bundle(&[0], 7)), bundle(&[], 7)), Verdict::Take(bundle(&[], 7), Remark::Emptied));
        assert_eq!(judge(Some(&bundle(&[], 8)), bundle(&[], 8)), Verdict::Unchanged);
    }

    prop_compose! {
        fn any_bundle()(roots in prop::sample::subsequence(vec![0, 1, 2], 0..=3), sequence in 0..5_u64) -> Bundle {
            bundle(&roots, sequence)
        }
    }

    proptest! {
        #[test]
        fn what_is_known_never_goes_back(offers in prop::collection::vec(any_bundle(), 1..20)) {
            let mut held: Option<Bundle> = None;
            for offered in offers {
                let before = held.as_ref().map_or(0, Bundle::sequence);
                match judge(held.as_ref(), offered.clone()) {
                    Verdict::Take(taken, _) => {
                        prop_assert!(taken.sequence() >= before || taken.sequence() == 0);
                        prop_assert_eq!(judge(Some(&taken), offered), Verdict::Unchanged);
                        held = Some(taken);
                    }
                    Verdict::Back { .. } => prop_assert!(offered.sequence() < before),
                    Verdict::Unchanged => prop_assert_eq!(keys(held.as_ref().unwrap()), keys(&offered)),
                }
            }
        }
    }
}
