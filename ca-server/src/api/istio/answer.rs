//! What a proxy gets: the certificate, what is between it and its root, and all roots that it is to trust. Pure.
//!
//! - One certificate in each element; only the last element has several, where there are several roots: whoever reads it
//!   takes the last element for the roots, and all before it for the chain.
//! - Roots that are prepared or retired are among them, so that a rotation finds every proxy ready.
//! - So there are never fewer than two elements: without a root there is no answer.

use spiffe::bundle::Bundle;
use spiffe::pem;

use crate::authority::issuer::Signed;

/// The elements of an answer in PEM; `None`: the bundle has no root.
pub(super) fn chain(signed: &Signed, bundle: &Bundle) -> Option<Vec<String>> {
    let roots = bundle.to_pem();
    if roots.is_empty() {
        return None;
    }
    Some(signed.chain().map(|certificate| pem::certificate(certificate)).chain([roots]).collect())
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;
    use spiffe::bundle::X509Authority;
    use spiffe::id::TrustDomain;
    use spiffe::time::{Lifetime, Timestamp};

    use super::*;
    use crate::authority::issuer::Serial;

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn signed(intermediates: Vec<CertificateDer<'static>>) -> Signed {
        Signed {
            id: domain().member("/ns/shop/sa/web").unwrap(),
            serial: Serial::from_random([1; 16]),
            lifetime: Lifetime { not_before: Timestamp::from_unix(0), not_after: Timestamp::from_unix(1) },
            leaf: vec![1].into(),
            intermediates: intermediates.into(),
        }
    }

    fn root() -> CertificateDer<'static> {
        let mut wish = rcgen::CertificateParams::default();
        wish.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = spiffe::crypto::generate_key(spiffe::entry::KeyType::P256).unwrap();
        wish.self_signed(&key).unwrap().into()
    }

    fn bundle(roots: &[CertificateDer<'static>]) -> Bundle {
        let roots = roots.iter().map(|root| X509Authority::from_der(root.clone()).unwrap()).collect();
        Bundle::new(domain(), roots, 1, None).unwrap()
    }

    fn ders(element: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(element.as_bytes()).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn the_leaf_comes_first_and_all_roots_are_the_last_element() {
        let (old, new) = (root(), root());
        let elements =
            chain(&signed(vec![vec![2].into(), vec![3].into()]), &bundle(&[old.clone(), new.clone()])).unwrap();
        let [leaf, one, two, roots] = <[String; 4]>::try_from(elements).unwrap();
        let single = |element: &str| <[_; 1]>::try_from(ders(element)).unwrap()[0].to_vec();
        assert_eq!((single(&leaf), single(&one), single(&two)), (vec![1], vec![2], vec![3]));
        assert_eq!(ders(&roots), [old, new]);
        assert!(leaf.ends_with("-----\n"), "some readers simply join the elements");
    }

    #[test]
    fn there_are_never_fewer_than_two_elements() {
        assert_eq!(chain(&signed(Vec::new()), &bundle(&[root()])).unwrap().len(), 2);
        assert_eq!(chain(&signed(Vec::new()), &Bundle::empty(domain())), None);
    }
}
