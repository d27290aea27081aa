//! The chain that a caller showed, judged again whenever our bundle changes: an authority that is revoked takes open
//! connections with it, not only handshakes to come.
//!
//! - The law is that of the handshake: a tainted root counts as long as it is in the bundle.
//! - It is asked for a moment of the SVID's own life: its end is looked at elsewhere, and a clock that was put back must
//!   not shut out an agent that comes to renew.
//! - What was found is kept with the sequence of the bundle, which is a revision, and so tells all our bundles apart.
//!   While the bundle stays, a request costs one comparison: no lock, no signature.

use arc_swap::ArcSwapOption;
use spiffe::bundle::Bundle;
use spiffe::time::Timestamp;
use spiffe::x509_svid::{Purpose, X509Svid};

/// See the head of this file.
#[derive(Debug)]
pub struct Chain {
    svid: X509Svid,
    judged: ArcSwapOption<Judged>,
}

#[derive(Clone, Copy, Debug)]
struct Judged {
    /// Of the bundle.
    sequence: u64,
    is_trusted: bool,
}

impl Chain {
    /// Nothing has been found of it yet.
    pub fn new(svid: X509Svid) -> Self {
        Self { svid, judged: ArcSwapOption::empty() }
    }

    /// The SVID at its lower end.
    pub fn svid(&self) -> &X509Svid {
        &self.svid
    }

    /// Whether it leads to a root of `bundle`, our own.
    pub fn is_trusted(&self, bundle: &Bundle, now: Timestamp) -> bool {
        let sequence = bundle.sequence();
        let judged = self.judged.load();
        if let Some(judged) = judged.as_deref().filter(|judged| judged.sequence == sequence) {
            return judged.is_trusted;
        }
        let life = self.svid.lifetime();
        let at = now.max(life.not_before).min(life.not_after);
        let is_trusted = self.svid.clone().verify_as(bundle, at, Purpose::Client).is_ok();
        self.judged.store(Some(Judged { sequence, is_trusted }.into()));
        is_trusted
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
        SanType,
    };
    use spiffe::bundle::X509Authority;
    use spiffe::crypto;
    use spiffe::entry::KeyType;
    use spiffe::id::TrustDomain;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    type Root = CertifiedIssuer<'static, KeyPair>;

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.not_before = NOW.to_date_time();
        params.not_after = NOW.plus(Duration::from_secs(3600)).to_date_time();
        params
    }

    fn root() -> Root {
        let mut wish = params();
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wish.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        CertifiedIssuer::self_signed(wish, crypto::generate_key(KeyType::P256).unwrap()).unwrap()
    }

    /// An SVID of `spiffe://example.org/<path>` by this root.
    fn svid_below(root: &Root, path: &str) -> X509Svid {
        let mut wish = params();
        wish.subject_alt_names = vec![SanType::URI(format!("spiffe://example.org/{path}").try_into().unwrap())];
        wish.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        wish.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = crypto::generate_key(KeyType::P256).unwrap();
        X509Svid::parse(vec![wish.signed_by(&key, root).unwrap().der().clone()]).unwrap()
    }

    /// Somebody's SVID, whose root nobody knows.
    pub(crate) fn svid(path: &str) -> X509Svid {
        svid_below(&root(), path)
    }

    fn bundle(sequence: u64, roots: &[(&Root, bool)]) -> Bundle {
        let authority = |root: &Root, tainted| X509Authority::from_der(root.der().clone()).unwrap().with_taint(tainted);
        let roots = roots.iter().map(|(root, tainted)| authority(root, *tainted)).collect();
        Bundle::new(TrustDomain::parse("example.org").unwrap(), roots, sequence, None).unwrap()
    }

    #[test]
    fn a_root_that_leaves_the_bundle_takes_the_chains_below_it_along() {
        let (old, new) = (root(), root());
        let chain = Chain::new(svid_below(&old, "web"));
        assert!(chain.is_trusted(&bundle(1, &[(&old, false)]), NOW));
        assert!(chain.is_trusted(&bundle(2, &[(&old, true), (&new, false)]), NOW), "tainted is not revoked");
        assert!(!chain.is_trusted(&bundle(3, &[(&new, false)]), NOW));
        assert!(!chain.is_trusted(&bundle(3, &[(&new, false)]), NOW));
    }

    #[test]
    fn nothing_is_verified_again_while_the_bundle_stays() {
        let (old, new) = (root(), root());
        let chain = Chain::new(svid_below(&old, "web"));
        assert!(chain.is_trusted(&bundle(1, &[(&old, false)]), NOW));
        // The number alone is looked at: this bundle would not do.
        assert!(chain.is_trusted(&bundle(1, &[(&new, false)]), NOW));
        assert!(!chain.is_trusted(&bundle(2, &[(&new, false)]), NOW));
        assert!(!chain.is_trusted(&bundle(2, &[(&old, false)]), NOW));
    }

    #[test]
    fn a_clock_that_was_put_back_shuts_nobody_out() {
        let (old, new) = (root(), root());
        let chain = Chain::new(svid_below(&old, "web"));
        let before = NOW.minus(Duration::from_secs(3600));
        assert!(chain.is_trusted(&bundle(1, &[(&old, false), (&new, false)]), before));
        assert!(!chain.is_trusted(&bundle(2, &[(&new, false)]), before));
    }
}
