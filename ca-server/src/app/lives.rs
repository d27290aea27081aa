//! What the config says about lives: of authorities, for those who rotate them, and of what they sign.

use crate::authority::Kind;
use crate::authority::keys::KeySpec;
use crate::authority::plan::{Policy, PolicyError};
use crate::config::{Config, Istio, TokenAlgorithm, Tokens};
use crate::issuance::Profile;
use crate::issuance::service_account::ServiceAccounts;
use crate::issuance::tokens::TokenProfile;
use crate::rotate::Rule;

/// One rule for each kind of authority.
pub(super) fn rules(config: &Config) -> Result<Vec<Rule>, PolicyError> {
    let policy = |kind, life, longest| Policy::new(kind, config.name.as_str().into(), life, longest);
    let tokens = |kind, tokens: &Tokens| {
        let key = match tokens.algorithm {
            TokenAlgorithm::Es256 => KeySpec::P256,
            TokenAlgorithm::Es384 => KeySpec::P384,
            TokenAlgorithm::Rs256 => KeySpec::Rsa2048,
        };
        Ok(Rule { key, policy: policy(kind, tokens.key_ttl, tokens.max_ttl)? })
    };
    let of_istio = config.istio.as_ref().map(|istio| istio.max_ttl).unwrap_or_default();
    let longest = config.svid.max_ttl.max(config.svid.agent_ttl).max(of_istio);
    // A proxy has renewed within the longest life of what it holds, or holds nothing: it has the roots of that moment.
    let x509 = Policy { asked_within: of_istio, ..policy(Kind::X509, config.authority.ca_ttl, longest)? };
    Ok(vec![
        Rule { key: config.authority.key_type.into(), policy: x509 },
        tokens(Kind::Jwt, &config.jwt)?,
        tokens(Kind::Wit, &config.wit)?,
    ])
}

/// What X.509-SVIDs look like.
pub(super) fn x509(config: &Config) -> Profile {
    Profile {
        trust_domain: config.trust_domain.clone(),
        default_ttl: config.svid.ttl,
        max_ttl: config.svid.max_ttl,
        agent_ttl: config.svid.agent_ttl,
    }
}

/// What X.509-SVIDs of service accounts look like.
pub(super) fn service_accounts(config: &Config, istio: &Istio) -> ServiceAccounts {
    ServiceAccounts { trust_domain: config.trust_domain.clone(), default_ttl: istio.ttl, max_ttl: istio.max_ttl }
}

/// What JWT-SVIDs look like.
pub(super) fn jwt(config: &Config) -> TokenProfile {
    token(config, &config.jwt, "jwt.max_ttl and jwt.key_ttl")
}

/// What WIT-SVIDs look like.
pub(super) fn wit(config: &Config) -> TokenProfile {
    token(config, &config.wit, "wit.max_ttl and wit.key_ttl")
}

fn token(config: &Config, tokens: &Tokens, raise: &'static str) -> TokenProfile {
    TokenProfile {
        trust_domain: config.trust_domain.clone(),
        default_ttl: tokens.ttl,
        max_ttl: tokens.max_ttl,
        issuer: tokens.issuer.as_ref().map(|issuer| issuer.as_str().to_owned()),
        raise,
    }
}
