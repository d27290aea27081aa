//! Mint: an X.509-SVID or JWT-SVID for any identity that is not Chancery's own, without an entry.

use std::time::Duration;

use spiffe::crypto;
use spiffe::csr::ProvenKey;
use spiffe::entry::{DnsName, MAX_DNS_NAMES};
use spiffe::jwt_svid::Audience;
use spiffe::proto::{spiffe_id, v1};

use super::Call;
use crate::api::status::Refusal;
use crate::api::token;
use crate::audit::{Event, Outcome, Serial as AuditSerial};
use crate::authority::issuer::{Serial, Signed};
use crate::authority::token_issuer::SignedToken;
use crate::issuance::tokens::{self, MintJwt, TokenRequest};
use crate::issuance::{self, Mint, Request};
use crate::metrics::IssuedFor;

pub(super) async fn mint(call: &Call<'_>, request: v1::MintX509SvidRequest) -> Result<v1::X509Svid, Refusal> {
    let Ok(_turn) = call.doors.issuing.try_acquire() else {
        return Err(Refusal::overloaded("too many batches are being signed"));
    };
    let mut record = call.doors.audit.reserve(1)?;
    let signed = sign(call, &request);
    let mut event = call.event(signed.as_ref().map_or_else(Refusal::outcome, |_| Outcome::Issued));
    event.csr_sha256 = Some(crypto::sha256(&request.csr));
    event.subject = spiffe_id("spiffe_id", &request.spiffe_id).ok();
    if let Ok(signed) = &signed {
        event.serial = Some(AuditSerial::new(signed.serial.bytes()));
        event.not_after = Some(signed.lifetime.not_after);
        call.doors.metrics.issued(IssuedFor::Mint);
    }
    call.doors.decided(&mut record, event);
    let signed = signed?;
    let chain = signed.chain().map(|certificate| certificate.to_vec().into()).collect();
    Ok(v1::X509Svid { spiffe_id: signed.id.to_string(), chain })
}

fn sign(call: &Call<'_>, request: &v1::MintX509SvidRequest) -> Result<Signed, Refusal> {
    let issuer = call.admitted.view.issuer().ok_or_else(Refusal::no_authority)?;
    if request.dns_names.len() > MAX_DNS_NAMES {
        return Err(issuance::Denied::TooManyDnsNames(request.dns_names.len()).into());
    }
    let dns_names = request.dns_names.iter().map(|name| DnsName::parse(name)).collect::<Result<_, _>>()?;
    let ttl = (request.ttl > 0).then(|| Duration::from_secs(request.ttl));
    let mint = Mint { id: spiffe_id("spiffe_id", &request.spiffe_id)?, dns_names, ttl };
    let key = ProvenKey::from_csr(&request.csr)?;
    let serial = Serial::from_random(crypto::random()?);
    let request = Request { key, serial, window: issuer.window(), now: call.admitted.now };
    Ok(issuer.sign(issuance::for_mint(mint, request, &call.doors.profile)?)?)
}

pub(super) async fn mint_jwt(call: &Call<'_>, request: v1::MintJwtSvidRequest) -> Result<v1::Token, Refusal> {
    let Ok(_turn) = call.doors.issuing.try_acquire() else {
        return Err(Refusal::overloaded("too many batches are being signed"));
    };
    let mut record = call.doors.audit.reserve(1)?;
    let mut event = call.event(Outcome::Issued);
    event.subject = spiffe_id("spiffe_id", &request.spiffe_id).ok();
    let signed = sign_jwt(call, &mut event, &request);
    match &signed {
        Ok(_) => call.doors.metrics.issued(IssuedFor::MintJwt),
        Err(refusal) => event.outcome = refusal.outcome(),
    }
    call.doors.decided(&mut record, event);
    Ok(token::to_wire(signed?))
}

fn sign_jwt(call: &Call<'_>, event: &mut Event, request: &v1::MintJwtSvidRequest) -> Result<SignedToken, Refusal> {
    let issuer = call.admitted.view.issuers().jwt.as_ref().ok_or_else(Refusal::no_authority)?;
    let audience = Audience::parse(&request.audience)?;
    let ttl = (request.ttl > 0).then(|| Duration::from_secs(request.ttl));
    let mint = MintJwt { id: spiffe_id("spiffe_id", &request.spiffe_id)?, audience: audience.clone(), ttl };
    let (window, now) = (issuer.authority().lifetime, call.admitted.now);
    let request = TokenRequest { window, now, chance: crypto::random()? };
    let token = issuer.sign(tokens::jwt_for_mint(mint, &request, &call.doors.jwt)?)?;
    token::signed(event, issuer.kid(), Some(&audience), &token);
    Ok(token)
}
