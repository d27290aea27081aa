//! The documents of one bundle, printed once: whoever asks again and again costs no more than bytes that are there.
//!
//! - What was printed is known by the sequence of the bundle, which is a revision, and so tells all our bundles apart.
//! - No lock: two who ask at once after a change may both print, and print the same.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use spiffe::bundle::Bundle;
use spiffe::crypto::sha256_hex;

use super::answer::Site;
use super::discovery::{self, Asked};

/// A document and the tag that tells it from others (RFC 9110 section 8.8.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) body: Bytes,
    pub(super) tag: String,
}

impl Page {
    fn new(document: String) -> Self {
        Self { tag: format!("\"{}\"", sha256_hex(document.as_bytes())), body: document.into() }
    }
}

/// All documents of one bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Print {
    sequence: u64,
    bundle: Page,
    /// The discovery document and the keys.
    oidc: Option<(Page, Page)>,
}

impl Print {
    pub(super) fn new(site: &Site, bundle: &Bundle) -> Self {
        let document = |asked| site.oidc.as_ref().map(|oidc| Page::new(discovery::document(oidc, asked, bundle)));
        Self {
            sequence: bundle.sequence(),
            bundle: Page::new(bundle.clone().with_refresh_hint(Some(site.refresh_hint)).to_jwks()),
            oidc: document(Asked::Discovery).zip(document(Asked::Keys)),
        }
    }

    /// The bundle as a SPIFFE JWKS document.
    pub(super) fn bundle(&self) -> &Page {
        &self.bundle
    }

    /// What verifiers that know no SPIFFE ask for; `None`: it is not served here.
    pub(super) fn oidc(&self, asked: Asked) -> Option<&Page> {
        let (discovery, keys) = self.oidc.as_ref()?;
        Some(match asked {
            Asked::Discovery => discovery,
            Asked::Keys => keys,
        })
    }
}

/// The latest print of a site.
#[derive(Debug, Default)]
pub(super) struct Press(ArcSwapOption<Print>);

impl Press {
    /// The print of `bundle`, our own; made where there is none yet.
    pub(super) fn print(&self, site: &Site, bundle: &Bundle) -> Arc<Print> {
        if let Some(print) = self.0.load_full().filter(|print| print.sequence == bundle.sequence()) {
            return print;
        }
        let print = Arc::new(Print::new(site, bundle));
        self.0.store(Some(Arc::clone(&print)));
        print
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use spiffe::id::TrustDomain;

    use super::*;

    #[test]
    fn a_bundle_is_printed_once_and_its_successor_anew() {
        let site = Site { path: "/".into(), refresh_hint: Duration::from_secs(300), oidc: None };
        let bundle =
            |sequence| Bundle::new(TrustDomain::parse("example.org").unwrap(), vec![], sequence, None).unwrap();
        let press = Press::default();
        let first = press.print(&site, &bundle(7));
        assert!(Arc::ptr_eq(&first, &press.print(&site, &bundle(7))), "nothing was printed again");
        let second = press.print(&site, &bundle(8));
        assert!(first.bundle() != second.bundle(), "what changed is shown at once");
        assert_eq!(*second, Print::new(&site, &bundle(8)));
    }
}
