//! The JWT-SVID profile (SPIFFE_Workload_API.md section 6).

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::{Map, Value};
use spiffe::id::SpiffeId;
use spiffe::jwt_svid::{Audience, AudienceError, JwtSvid};
use spiffe::proto::workload::{
    JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use spiffe::time::Timestamp;
use spiffe::token::TokenError;

use crate::api::answers;
use crate::api::tokens::{JwtAnswer, JwtWish};
use crate::cache::directory::Entitlement;
use crate::config::jwt::Claims;

/// Why a request of this profile is not answered, although the process is entitled to something.
#[derive(Debug, thiserror::Error)]
pub(super) enum Invalid {
    /// The audience is missing, or is none.
    #[error("audience: {0}")]
    Audience(#[from] AudienceError),
    /// The SPIFFE ID is none.
    #[error("spiffe_id: {0}")]
    Id(#[from] spiffe::id::IdError),
    /// A field that has to be there is not.
    #[error("{0} is missing: it is mandatory")]
    Missing(&'static str),
    /// The token is no good.
    #[error("the token is no good: {0}")]
    Token(#[from] TokenError),
    /// The token is of a trust domain that this process gets no bundle of.
    #[error(
        "the token is of {0}, and no entry of this process federates with that trust domain: it cannot be validated"
    )]
    UnknownTrustDomain(SpiffeId),
}

/// Section 6.2.1: the request.
pub(super) fn wish(request: &JwtsvidRequest) -> Result<JwtWish, Invalid> {
    let id = request.spiffe_id.as_str();
    let id = if id.is_empty() { None } else { Some(SpiffeId::parse(id)?) };
    Ok(JwtWish { audience: Audience::parse(&request.audience)?, id })
}

/// Section 6.2.1: the response.
pub(super) fn svids(answers: Vec<JwtAnswer>) -> JwtsvidResponse {
    let svid = |JwtAnswer { spiffe_id, svid, hint }| Jwtsvid { spiffe_id, svid, hint };
    JwtsvidResponse { svids: answers.into_iter().map(svid).collect() }
}

/// Section 6.2.2.
pub(super) fn bundles(entitlement: &Entitlement) -> JwtBundlesResponse {
    JwtBundlesResponse { bundles: answers::jwt_bundles(entitlement) }
}

/// Section 6.2.3: against the bundle of the token's own trust domain, of those that this process gets.
pub(super) fn validate(
    request: &ValidateJwtsvidRequest,
    entitlement: &Entitlement,
    claims: &Claims,
    now: Timestamp,
) -> Result<ValidateJwtsvidResponse, Invalid> {
    for (name, field) in [("audience", &request.audience), ("svid", &request.svid)] {
        if field.is_empty() {
            return Err(Invalid::Missing(name));
        }
    }
    let svid = JwtSvid::parse(&request.svid)?;
    let bundle = entitlement.bundles.iter().find(|bundle| svid.id().is_member_of(bundle.trust_domain()));
    let bundle = bundle.ok_or_else(|| Invalid::UnknownTrustDomain(svid.id().clone()))?;
    let verified = svid.verify(bundle, &request.audience, now)?;
    let shown = verified.claims().iter().filter(|(name, _)| claims.show(name));
    let shown = shown.map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(ValidateJwtsvidResponse { spiffe_id: verified.id().to_string(), claims: Some(structure(shown)) })
}

fn structure(object: Map<String, Value>) -> Struct {
    Struct { fields: object.into_iter().map(|(name, value)| (name, proto(value))).collect() }
}

/// As deep as the parser of the token has let it be.
fn proto(value: Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(proto).collect() }),
        Value::Object(object) => Kind::StructValue(structure(object)),
    };
    ProtoValue { kind: Some(kind) }
}
