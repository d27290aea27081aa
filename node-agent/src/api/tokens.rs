//! JWT-SVIDs for a process that is known, whoever asks for it.
//!
//! - A token that is held is given at once: nobody is waited for. Whether the process may have it is looked up in what the
//!   agent knows of its entries, and needs no X.509-SVID.
//! - What is still to come is waited for as long as for any first answer; then it is [`Denial::NotReady`].
//! - An identity that the server refuses is left out; where it refuses all, it is [`Denial::Refused`].

use std::collections::BTreeSet;

use futures_util::future::join_all;
use spiffe::id::SpiffeId;
use spiffe::jwt_svid::Audience;

use super::door::{Admitted, Denial, Door};
use crate::attestor::AttestError;
use crate::cache::Stopped;
use crate::cache::directory::Entitlement;
use crate::cache::tokens::Told;

/// One JWT-SVID and what belongs to it.
pub(super) struct JwtAnswer {
    pub(super) spiffe_id: String,
    pub(super) svid: String,
    /// Empty: none.
    pub(super) hint: String,
}

/// For whom and as whom.
pub(super) struct JwtWish {
    pub(super) audience: Audience,
    /// `None`: each identity of the process.
    pub(super) id: Option<SpiffeId>,
}

impl Door {
    /// What `admitted` is entitled to, the default identity first; never nothing.
    pub(super) async fn entitlement(&self, admitted: &Admitted) -> Result<Entitlement, Denial> {
        let asked = self.cache.entitlement(&admitted.selectors, self.clock.now());
        let entitlement = tokio::select! {
            biased;
            entitlement = asked => entitlement?,
            () = self.clock.sleep(self.first_answer) => return Err(Denial::NotReady),
        };
        let entitlement = admitted.asker.share_entitlement(entitlement);
        if entitlement.is_empty() { Err(no_identity(admitted)) } else { Ok(entitlement) }
    }

    /// A JWT-SVID for each identity of `admitted` that is wished for, the default one first.
    pub(super) async fn jwt_svids(&self, admitted: &Admitted, wish: JwtWish) -> Result<Vec<JwtAnswer>, Denial> {
        let mut entries = self.entitlement(admitted).await?.entries;
        if let Some(id) = wish.id {
            entries.retain(|entry| entry.spiffe_id == id);
            if entries.is_empty() {
                return Err(Denial::OtherIdentity(id));
            }
        }
        let now = self.clock.now();
        let asked = join_all(entries.iter().map(|entry| self.cache.token(entry, &wish.audience, now)));
        let told = tokio::select! {
            biased;
            told = asked => told,
            () = admitted.peer.ended() => return Err(AttestError::Gone(admitted.peer.pid()).into()),
            () = self.shutdown.cancelled() => return Err(Stopped.into()),
            () = self.clock.sleep(self.first_answer) => return Err(Denial::NotReady),
        };
        let (mut answers, mut refused, mut hints) = (Vec::new(), None, BTreeSet::new());
        for (entry, told) in entries.iter().zip(told) {
            match told? {
                Told::Token(token) => {
                    let hint = if hints.insert(&entry.hint) { entry.hint.clone() } else { String::new() };
                    let svid = token.svid();
                    answers.push(JwtAnswer { spiffe_id: svid.id().to_string(), svid: svid.token().to_owned(), hint });
                }
                Told::Refused(why) => refused = Some(Denial::Refused(why)),
                Told::Failed => return Err(Denial::NotReady),
                Told::Gone => {}
            }
        }
        if answers.is_empty() {
            return Err(refused.unwrap_or_else(|| no_identity(admitted)));
        }
        Ok(answers)
    }
}

fn no_identity(admitted: &Admitted) -> Denial {
    Denial::NoIdentity { pid: admitted.peer.pid(), selectors: admitted.selectors.clone() }
}
