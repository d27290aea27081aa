//! Mint: an SVID for any identity that is not Chancery's own, without an entry.

use std::time::Duration;

use spiffe::crypto;
use spiffe::csr::ProvenKey;
use spiffe::entry::{DnsName, MAX_DNS_NAMES};
use spiffe::proto::{spiffe_id, v1};

use super::Call;
use crate::api::status::Refusal;
use crate::audit::{Outcome, Serial as AuditSerial};
use crate::authority::issuer::{Serial, Signed};
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

pub(super) async fn mint_jwt(_: &Call<'_>, _: v1::MintJwtSvidRequest) -> Result<v1::Token, Refusal> {
    Err(Refusal::precondition("JWT-SVIDs are not issued yet"))
}
