//! Join tokens: shown once, when they are made; kept as a hash.

use std::time::Duration;

use spiffe::crypto;
use spiffe::id::SpiffeId;
use spiffe::proto::{spiffe_id, v1};

use super::{About, Call};
use crate::api::status::Refusal;
use crate::attest::join_token::{ID_CHARACTERS, generate, hash};
use crate::store::Txn;
use crate::view::keys;
use crate::view::record::JoinToken;

/// The life of a token when none is asked for: enough to copy it to another machine.
const DEFAULT_TTL: Duration = Duration::from_secs(600);

pub(super) async fn create(
    call: &Call<'_>,
    request: v1::CreateJoinTokenRequest,
) -> Result<v1::CreateJoinTokenResponse, Refusal> {
    let (view, now, most) = (&call.admitted.view, call.admitted.now, call.settings.token_max_ttl);
    let ttl = if request.ttl == 0 { DEFAULT_TTL.min(most) } else { Duration::from_secs(request.ttl) };
    if ttl > most {
        let [ttl, most] = [ttl, most].map(spiffe::settings::write_duration);
        return Err(Refusal::invalid(format_args!(
            "a token's life of {ttl} was asked for, at most {most} is allowed: ask for less, or raise \
             attest.join_token.max_ttl in the server's config"
        )));
    }
    let alias = (!request.alias.is_empty()).then(|| spiffe_id("alias", &request.alias)).transpose()?;
    let domain = view.trust_domain();
    let is_alias = |id: &SpiffeId| id.is_member_of(domain) && !id.path().is_empty() && !id.is_reserved();
    if let Some(alias) = alias.as_ref().filter(|alias| !is_alias(alias)) {
        return Err(Refusal::invalid(format_args!(
            "alias {alias} can be no node alias: use an ID of {domain} with a path that is not under /chancery"
        )));
    }
    if view.tokens().count() >= call.settings.most_tokens {
        return Err(Refusal::precondition(format_args!(
            "there are {} join tokens: revoke some, or raise limits.join_tokens in the server's config",
            call.settings.most_tokens
        )));
    }
    let token = generate(crypto::random()?);
    let hash = hash(&token);
    let id: String = hash.chars().take(ID_CHARACTERS).collect();
    let record = JoinToken { id: id.clone(), created_at: now, expires_at: now.plus(ttl), alias };
    let work = async {
        let key = keys::token(&hash);
        let txn = Txn::new().absent(key.clone()).put(key, record.to_record());
        Ok(((), call.doors.commit(txn).await?))
    };
    let ((), revision) = call.change(About::object(&id), work).await?;
    Ok(v1::CreateJoinTokenResponse { token, id, expires_at: record.expires_at.unix(), revision })
}

pub(super) async fn list(call: &Call<'_>, _: v1::ListJoinTokensRequest) -> Result<v1::ListJoinTokensResponse, Refusal> {
    let mut tokens: Vec<v1::JoinToken> = call
        .admitted
        .view
        .tokens()
        .map(|(_, token)| v1::JoinToken {
            id: token.id.clone(),
            created_at: token.created_at.unix(),
            expires_at: token.expires_at.unix(),
            alias: token.alias.as_ref().map(ToString::to_string).unwrap_or_default(),
        })
        .collect();
    tokens.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(v1::ListJoinTokensResponse { tokens })
}

pub(super) async fn revoke(
    call: &Call<'_>,
    request: v1::RevokeJoinTokenRequest,
) -> Result<v1::ChangeResponse, Refusal> {
    let id: String = request.id.chars().take(64).collect();
    let work = async {
        let found = call.admitted.view.tokens().find(|(_, token)| token.id == id);
        let (hash, token) = found.ok_or_else(|| {
            Refusal::not_found(format_args!(
                "there is no join token {id} (used, revoked or expired): list them with \"chancery token list\""
            ))
        })?;
        let key = keys::token(hash);
        let txn = Txn::new().expect(key.clone(), token.revision).delete(key);
        Ok(((), call.doors.commit(txn).await?))
    };
    let ((), revision) = call.change(About::object(&id), work).await?;
    Ok(v1::ChangeResponse { revision })
}
