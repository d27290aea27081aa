//! Federation relationships: from where the bundle of another trust domain is fetched, and how that place is known
//! (SPIFFE_Federation.md section 5).
//!
//! - Trust domain, URL, profile and endpoint SPIFFE ID are each said by an operator. None is ever inferred from another
//!   (section 7.2): whoever can put a file under some DNS name is not thereby the trust domain of that name.
//! - `https_web` has no endpoint SPIFFE ID; `https_spiffe` has one, of any trust domain but the empty path.

mod url;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::url::{EndpointUrl, Host, MAX_URL_BYTES, UrlError};
use crate::id::{SpiffeId, TrustDomain};

/// Why something is no relationship.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelationshipError {
    /// The URL is wrong.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The profile is none that there is.
    #[error("profile {0:?} is not known: use https_web or https_spiffe")]
    Profile(String),
    /// `https_spiffe` without an endpoint SPIFFE ID (section 5.2.2.2).
    #[error("profile https_spiffe needs an endpoint SPIFFE ID: name the ID that the endpoint of {0} shows")]
    NoEndpointId(TrustDomain),
    /// `https_web` with one (section 5.2.1.2: it has no further parameters).
    #[error("profile https_web takes no endpoint SPIFFE ID ({0}): leave it out, or use https_spiffe")]
    EndpointId(SpiffeId),
    /// The endpoint SPIFFE ID is that of a whole trust domain.
    #[error("endpoint SPIFFE ID {0} has no path: it names a trust domain, and no endpoint")]
    NoPath(SpiffeId),
    /// The trust domain is our own.
    #[error("{0} is this server's own trust domain: its bundle is made here, and fetched from nowhere")]
    Own(TrustDomain),
}

/// How an endpoint is known, by its name in the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileName {
    /// By a certificate of the public web.
    HttpsWeb,
    /// By an X.509-SVID.
    HttpsSpiffe,
}

impl ProfileName {
    /// As the standard writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HttpsWeb => "https_web",
            Self::HttpsSpiffe => "https_spiffe",
        }
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProfileName {
    type Err = RelationshipError;

    fn from_str(text: &str) -> Result<Self, RelationshipError> {
        match text {
            "https_web" => Ok(Self::HttpsWeb),
            "https_spiffe" => Ok(Self::HttpsSpiffe),
            other => Err(RelationshipError::Profile(other.chars().take(64).collect())),
        }
    }
}

/// How the endpoint of one relationship is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// By a certificate of the public web for the host of the URL (section 5.2.1).
    HttpsWeb,
    /// By an X.509-SVID of this very ID (section 5.2.2).
    HttpsSpiffe(SpiffeId),
}

impl Profile {
    /// Its name.
    pub fn name(&self) -> ProfileName {
        match self {
            Self::HttpsWeb => ProfileName::HttpsWeb,
            Self::HttpsSpiffe(_) => ProfileName::HttpsSpiffe,
        }
    }

    /// The ID that the endpoint has to show, where it shows an SVID.
    pub fn endpoint_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::HttpsWeb => None,
            Self::HttpsSpiffe(id) => Some(id),
        }
    }
}

/// From where the bundle of one foreign trust domain is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relationship {
    /// Whose bundle it is.
    pub trust_domain: TrustDomain,
    /// Where it is.
    pub url: EndpointUrl,
    /// How that place is known.
    pub profile: Profile,
}

impl Relationship {
    /// A relationship of these parameters; an empty `endpoint_id` is none.
    pub fn new(
        trust_domain: TrustDomain,
        url: EndpointUrl,
        profile: ProfileName,
        endpoint_id: Option<SpiffeId>,
    ) -> Result<Self, RelationshipError> {
        let profile = match (profile, endpoint_id) {
            (ProfileName::HttpsWeb, None) => Profile::HttpsWeb,
            (ProfileName::HttpsWeb, Some(id)) => return Err(RelationshipError::EndpointId(id)),
            (ProfileName::HttpsSpiffe, None) => return Err(RelationshipError::NoEndpointId(trust_domain)),
            (ProfileName::HttpsSpiffe, Some(id)) if id.path().is_empty() => return Err(RelationshipError::NoPath(id)),
            (ProfileName::HttpsSpiffe, Some(id)) => Profile::HttpsSpiffe(id),
        };
        Ok(Self { trust_domain, url, profile })
    }

    /// Refuses a relationship with `own`, the trust domain of the server that would have it.
    pub fn foreign_to(self, own: &TrustDomain) -> Result<Self, RelationshipError> {
        if self.trust_domain == *own {
            return Err(RelationshipError::Own(self.trust_domain));
        }
        Ok(self)
    }

    /// The trust domain whose bundle tells the endpoint; `None`: the public web's roots do.
    pub fn endpoint_trust_domain(&self) -> Option<TrustDomain> {
        self.profile.endpoint_id().map(SpiffeId::trust_domain)
    }

    /// Whether the endpoint is told by the very bundle that it serves (section 5.2.2.2).
    pub fn is_self_serving(&self) -> bool {
        self.endpoint_trust_domain().is_some_and(|of_endpoint| of_endpoint == self.trust_domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other() -> TrustDomain {
        TrustDomain::parse("other.org").unwrap()
    }

    fn url() -> EndpointUrl {
        EndpointUrl::parse("https://bundles.other.org/").unwrap()
    }

    #[test]
    fn each_profile_has_its_own_parameters() {
        let id = SpiffeId::parse("spiffe://other.org/chancery/server").unwrap();
        let new = |profile, id| Relationship::new(other(), url(), profile, id);
        assert!(new(ProfileName::HttpsWeb, None).unwrap().endpoint_trust_domain().is_none());
        assert!(new(ProfileName::HttpsSpiffe, Some(id.clone())).unwrap().is_self_serving());
        let served_by = SpiffeId::parse("spiffe://third.org/bundles").unwrap();
        assert!(!new(ProfileName::HttpsSpiffe, Some(served_by)).unwrap().is_self_serving());
        assert_eq!(new(ProfileName::HttpsWeb, Some(id.clone())), Err(RelationshipError::EndpointId(id)));
        assert_eq!(new(ProfileName::HttpsSpiffe, None), Err(RelationshipError::NoEndpointId(other())));
        assert_eq!(new(ProfileName::HttpsSpiffe, Some(other().id())), Err(RelationshipError::NoPath(other().id())));
    }

    #[test]
    fn the_own_trust_domain_is_refused() {
        let ours = Relationship::new(other(), url(), ProfileName::HttpsWeb, None).unwrap();
        let error = ours.clone().foreign_to(&other()).unwrap_err();
        assert!(error.to_string().contains("own trust domain"), "{error}");
        assert!(ours.foreign_to(&TrustDomain::parse("example.org").unwrap()).is_ok());
    }

    #[test]
    fn a_profile_is_written_as_in_the_standard() {
        for name in [ProfileName::HttpsWeb, ProfileName::HttpsSpiffe] {
            assert_eq!(name.as_str().parse(), Ok(name));
        }
        assert!("https".parse::<ProfileName>().unwrap_err().to_string().contains("use https_web or https_spiffe"));
    }
}
