//! Service accounts and the identities that Istio gives them: `spiffe://<trust domain>/ns/<namespace>/sa/<name>`. Pure.

use spiffe::id::{IdError, SpiffeId, TrustDomain};

/// A service account by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

/// Why a service account has no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AccountError {
    /// A name is no segment of a path.
    #[error("service account {0}: {1}")]
    Id(String, IdError),
    /// A name has several segments.
    #[error("service account {0} has a name that is no segment of a path")]
    Segments(String),
}

impl<'a> Account<'a> {
    /// Its identity. What is no legal segment of a path is refused, never escaped.
    pub(super) fn id(self, trust_domain: &TrustDomain) -> Result<SpiffeId, AccountError> {
        let shown = || format!("{}/{}", self.namespace, self.name);
        let id = trust_domain.member(&format!("/ns/{}/sa/{}", self.namespace, self.name));
        let id = id.map_err(|error| AccountError::Id(shown(), error))?;
        if Account::of_id(&id) != Some(self) {
            return Err(AccountError::Segments(shown()));
        }
        Ok(id)
    }

    /// The service account whose identity `id` is, of whatever trust domain.
    pub(super) fn of_id(id: &'a SpiffeId) -> Option<Self> {
        let mut segments = id.path().split('/').skip(1);
        let ("ns", namespace, "sa", name) = (segments.next()?, segments.next()?, segments.next()?, segments.next()?)
        else {
            return None;
        };
        segments.next().is_none().then_some(Self { namespace, name })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    #[test]
    fn an_identity_is_made_of_namespace_and_name_and_of_nothing_else() {
        let web = Account { namespace: "shop", name: "web.v2" };
        let id = web.id(&domain()).unwrap();
        assert_eq!(id.as_str(), "spiffe://example.org/ns/shop/sa/web.v2");
        assert_eq!(Account::of_id(&id), Some(web));
        for (namespace, name) in
            [("", "web"), ("shop", ""), ("shop", ".."), ("shop/sa", "web"), ("shop", "web/x"), ("ö", "a")]
        {
            assert!(Account { namespace, name }.id(&domain()).is_err(), "{namespace} {name}");
        }
        for other in ["", "/ns/a", "/ns/a/sa", "/ns/a/sa/b/c", "/sa/a/ns/b", "/x/ns/a/sa/b", "/chancery/server"] {
            let id = domain().member(other).unwrap();
            assert_eq!(Account::of_id(&id), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn an_identity_leads_back_to_the_same_account(namespace in "[a-z0-9./_-]{0,9}", name in "[a-z0-9./_-]{0,9}") {
            let account = Account { namespace: &namespace, name: &name };
            if let Ok(id) = account.id(&domain()) {
                prop_assert_eq!(Account::of_id(&id), Some(account));
            }
        }
    }
}
