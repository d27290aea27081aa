//! A signed token as both doors give it out, and as the record has it.

use std::sync::Arc;

use spiffe::crypto;
use spiffe::jwt_svid::Audience;
use spiffe::proto::v1;

use crate::audit::{self, Event, Mark, Message};
use crate::authority::token_issuer::SignedToken;

/// As the wire has it.
pub(super) fn to_wire(signed: SignedToken) -> v1::Token {
    v1::Token {
        spiffe_id: signed.id.to_string(),
        token: signed.token,
        issued_at: signed.issued_at.unix(),
        expires_at: signed.expires_at.unix(),
    }
}

/// Writes into `event` by what the token can be known again; never the token itself.
pub(super) fn signed(event: &mut Event, kid: &Arc<str>, audience: Option<&Audience>, token: &SignedToken) {
    let mark = match &token.jti {
        Some(jti) => Mark::Jti(jti.clone()),
        None => Mark::Sha256(crypto::sha256(token.token.as_bytes())),
    };
    let audience = audience.map(|audience| Message::new(&audience.values().join(", ")));
    event.subject = Some(token.id.clone());
    event.not_after = Some(token.expires_at);
    event.token = Some(Box::new(audit::Token { kid: Arc::clone(kid), mark, audience }));
}
