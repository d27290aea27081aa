//! X.509-SVIDs of Kubernetes service accounts, for proxies that ask for them by themselves (Istio's CA protocol): nobody
//! has written an entry, an API server's word says whose they are.
//!
//! - The life is what was asked for; more than the config allows is refused, not cut: the proxy plans its renewal by it.
//! - It begins [`SERVICE_ACCOUNT_BACKDATE`] ago.

use std::time::Duration;

use spiffe::id::{SpiffeId, TrustDomain};

use super::{Denied, Request, SvidPlan, check_ttl, plan, workload};

/// How far back the life of such an SVID begins. Other SVIDs reach a workload through an agent, whose clock has met the
/// server's; these go from proxy to proxy, over nodes whose clocks nobody has compared, and Istio's own CA has always
/// forgiven them two minutes. It is no key of the config: there is nothing to gain by another number.
pub const SERVICE_ACCOUNT_BACKDATE: Duration = Duration::from_secs(120);

/// What the config says about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccounts {
    /// Ours.
    pub trust_domain: TrustDomain,
    /// The life when none is asked for.
    pub default_ttl: Duration,
    /// The longest life, which the CA can honour: the config has been checked for that.
    pub max_ttl: Duration,
}

/// Plans the SVID of the service account with this ID.
pub fn for_service_account(
    id: SpiffeId,
    ttl: Option<Duration>,
    request: Request,
    profile: &ServiceAccounts,
) -> Result<SvidPlan, Denied> {
    workload(&id, &profile.trust_domain)?;
    let ttl = ttl.unwrap_or(profile.default_ttl);
    check_ttl(ttl, profile.max_ttl, "istio.max_ttl")?;
    let begin = request.now.minus(SERVICE_ACCOUNT_BACKDATE).max(request.window.not_before);
    let mut planned = plan(id, Vec::new(), request, ttl, None)?;
    planned.lifetime.not_before = begin;
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use spiffe::csr::ProvenKey;
    use spiffe::entry::KeyType;
    use spiffe::time::{Lifetime, Timestamp};

    use super::super::Serial;
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn planned(id: &str, ttl: Option<Duration>, window: Lifetime) -> Result<SvidPlan, Denied> {
        let key = spiffe::crypto::generate_key(KeyType::P256).unwrap();
        let key = ProvenKey::from_csr(&spiffe::csr::create(&key).unwrap()).unwrap();
        let request = Request { key, serial: Serial::from_random([1; 16]), window, now: NOW };
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let profile = ServiceAccounts { trust_domain, default_ttl: HOUR, max_ttl: HOUR * 24 };
        for_service_account(SpiffeId::parse(id).unwrap(), ttl, request, &profile)
    }

    fn window() -> Lifetime {
        Lifetime { not_before: NOW.minus(HOUR), not_after: NOW.plus(HOUR * 100) }
    }

    const WEB: &str = "spiffe://example.org/ns/shop/sa/web";

    #[test]
    fn it_begins_two_minutes_ago_but_not_before_its_ca() {
        let of = |plan: SvidPlan| (NOW.since(plan.lifetime.not_before), plan.lifetime.not_after.since(NOW));
        assert_eq!(of(planned(WEB, None, window()).unwrap()), (Duration::from_secs(120), HOUR));
        assert_eq!(of(planned(WEB, Some(HOUR * 24), window()).unwrap()), (Duration::from_secs(120), HOUR * 24));
        let young = Lifetime { not_before: NOW.minus(Duration::from_secs(60)), ..window() };
        assert_eq!(of(planned(WEB, None, young).unwrap()), (Duration::from_secs(60), HOUR));
    }

    #[test]
    fn more_than_the_config_allows_is_refused_and_not_cut() {
        let refused = planned(WEB, Some(HOUR * 25), window()).unwrap_err().to_string();
        assert!(refused.starts_with("a life of 1d 1h was asked for, at most 1d is allowed"), "{refused}");
        assert!(refused.contains("istio.max_ttl"), "{refused}");
        let short = planned(WEB, Some(Duration::from_secs(1)), window()).unwrap_err();
        assert_eq!(short, Denied::TooShort(Duration::from_secs(1)));
    }

    #[test]
    fn an_identity_of_others_or_of_our_own_is_none() {
        let why = |id: &str| planned(id, None, window()).unwrap_err();
        assert!(matches!(why("spiffe://other.org/ns/shop/sa/web"), Denied::Foreign { .. }));
        assert!(matches!(why("spiffe://example.org/chancery/server"), Denied::Reserved(_)));
        assert!(matches!(why("spiffe://example.org"), Denied::NoPath(_)));
    }
}
