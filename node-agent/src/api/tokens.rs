//! JWT-SVIDs for a process that is known, whoever asks for it.
//!
//! - A token that is held is given at once: nobody is waited for. Whether the process may have it is looked up in what the
//!   agent knows of its entries, and needs no X.509-SVID.
//! - What is still to come is waited for as long as for any first answer; then it is [`Denial::NotReady`]. What the process
//!   may not have any more when it comes is not given.
//! - One user, or broker, waits in so many calls at once: who asks for ever other audiences holds up himself.
//! - An identity that the server refuses is left out; where it refuses all, it is [`Denial::Refused`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::try_join_all;
use spiffe::entry::{EntryId, RegistrationEntry};
use spiffe::id::SpiffeId;
use spiffe::jwt_svid::Audience;

use super::door::{Admitted, Denial, Door};
use crate::cache::Stopped;
use crate::cache::directory::Entitlement;
use crate::cache::tokens::Told;
use crate::cache::tokens::machine::MAX_BATCH;

/// In how many calls one holder may wait for tokens at once: what he asks for fits into two calls to the server, or few more,
/// behind which others wait.
pub(super) const WAITS_OF_ONE: usize = 2 * MAX_BATCH;

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
        let mut entries = self.wished(admitted, &wish).await?;
        let now = self.clock.now();
        let (mut told, mut missing) = (BTreeMap::new(), Vec::new());
        for entry in &entries {
            match self.cache.held_token(entry, &wish.audience, now) {
                Some(token) => drop(told.insert(entry.id.clone(), Told::Token(token))),
                None => missing.push(entry),
            }
        }
        if !missing.is_empty() {
            told.extend(self.wait_for(admitted, missing, &wish.audience).await?);
            // Meanwhile entries may have gone or changed.
            entries = self.wished(admitted, &wish).await?;
        }
        // So may the right of who asks, and be it while the process was looked at.
        if let Some(denial) = self.ends(admitted.asker.clone()).come().now_or_never() {
            return Err(denial);
        }
        let (mut answers, mut refused, mut hints) = (Vec::new(), None, BTreeSet::new());
        for entry in &entries {
            match told.remove(&entry.id) {
                Some(Told::Token(token)) if *token.svid().id() == entry.spiffe_id => {
                    let hint = if hints.insert(&entry.hint) { entry.hint.clone() } else { String::new() };
                    let svid = token.svid();
                    answers.push(JwtAnswer { spiffe_id: svid.id().to_string(), svid: svid.token().to_owned(), hint });
                }
                Some(Told::Refused(why)) => refused = Some(Denial::Refused(why)),
                Some(Told::Failed) => return Err(Denial::NotReady),
                // It has come or changed since it was looked for.
                Some(Told::Token(_) | Told::Gone) | None => {}
            }
        }
        if answers.is_empty() { Err(refused.unwrap_or(Denial::NotReady)) } else { Ok(answers) }
    }

    /// The entries of `admitted` that are wished for; never none.
    async fn wished(&self, admitted: &Admitted, wish: &JwtWish) -> Result<Vec<Arc<RegistrationEntry>>, Denial> {
        let mut entries = self.entitlement(admitted).await?.entries;
        if let Some(id) = &wish.id {
            entries.retain(|entry| entry.spiffe_id == *id);
            if entries.is_empty() {
                return Err(Denial::OtherIdentity(id.clone()));
            }
        }
        Ok(entries)
    }

    /// What comes of asking for the tokens of `entries`.
    async fn wait_for(
        &self,
        admitted: &Admitted,
        entries: Vec<&Arc<RegistrationEntry>>,
        audience: &Audience,
    ) -> Result<Vec<(EntryId, Told)>, Denial> {
        let holder = admitted.place.holder();
        let too_many = |_| Denial::TooManyWait { holder: holder.clone(), most: self.waits.most(holder) };
        let _place = self.waits.take(holder.clone()).map_err(too_many)?;
        let ask = async |entry: &RegistrationEntry| {
            let told = self.cache.token(entry, audience).await?;
            Ok::<_, Stopped>((entry.id.clone(), told))
        };
        let asked = try_join_all(entries.into_iter().map(|entry| ask(entry)));
        let mut ends = self.ends(admitted.asker.clone());
        tokio::select! {
            biased;
            denial = admitted.subject.ended() => Err(denial),
            denial = ends.come() => Err(denial),
            told = asked => Ok(told?),
            () = self.clock.sleep(self.first_answer) => Err(Denial::NotReady),
        }
    }
}

fn no_identity(admitted: &Admitted) -> Denial {
    Denial::NoIdentity { whom: admitted.subject.whom(), selectors: admitted.selectors.clone() }
}

#[cfg(test)]
mod tests {
    use spiffe::bundle::Bundle;
    use spiffe::jwt_svid::JwtSvid;
    use spiffe::time::Fake;
    use tokio::task::JoinHandle;

    use super::super::door::Asker;
    use super::super::door::tests::{NOW, broker, domain, end, entry, named, roots};
    use super::super::places::{Holder, Places};
    use super::*;
    use crate::cache::Mailbox;
    use crate::cache::directory::Directory;
    use crate::cache::tokens::{Token, Tokens};
    use crate::client::Update;
    use crate::test_house::Authority;
    use crate::test_tokens::{TokenKey, audience, with_keys};

    type Asked = JoinHandle<Result<Vec<JwtAnswer>, Denial>>;

    fn say(mailbox: &Mailbox, entries: &[RegistrationEntry]) {
        let mut directory = Directory::new(Bundle::empty(domain("example.org")));
        let entries = entries.iter().cloned().map(Arc::new).collect();
        directory.apply(&Update { entries, ..Update::default() });
        mailbox.directory.send_replace(Some(directory));
    }

    /// A token for "reports" of the entry as it was asked for.
    fn token(entry: &RegistrationEntry) -> Told {
        let (key, audience) = (TokenKey::new(), audience(&["reports"]));
        let token = key.jwt_svid(&entry.spiffe_id, &audience, (NOW, std::time::Duration::from_secs(300)), None);
        let bundle = with_keys(Bundle::empty(domain("example.org")), &[&key], &[]);
        let svid = JwtSvid::parse(&token).unwrap().verify(&bundle, "reports", NOW).unwrap();
        Told::Token(Arc::new(Token::new(svid.into_svid(), NOW)))
    }

    /// A call for all tokens of a process that waits for those of `web` and `api`, in this order.
    async fn asking() -> (Asked, Mailbox, Fake, std::process::Child, [RegistrationEntry; 2]) {
        let (door, mailbox, clock, child, admitted) = named(Asker::Itself);
        let entries = [
            entry("web"),
            RegistrationEntry { created_at: NOW.minus(std::time::Duration::from_secs(1)), ..entry("api") },
        ];
        say(&mailbox, &entries);
        let wish = JwtWish { audience: audience(&["reports"]), id: None };
        let asked = tokio::spawn(async move { door.jwt_svids(&admitted, wish).await });
        (asked, mailbox, clock, child, entries)
    }

    #[tokio::test]
    async fn what_a_process_may_not_have_any_more_is_not_given_to_it() {
        let (asked, mut mailbox, _clock, child, [web, api]) = asking().await;
        let wants = [mailbox.wants.recv().await.unwrap(), mailbox.wants.recv().await.unwrap()];
        // One is another now, and one is new.
        let other = RegistrationEntry { spiffe_id: domain("example.org").member("/other").unwrap(), ..api.clone() };
        say(&mailbox, &[web.clone(), other, entry("new")]);
        for want in wants {
            want.told.send(token(if want.entry == web.id { &web } else { &api })).await.unwrap();
        }
        let answers = asked.await.unwrap().unwrap();
        assert_eq!(answers.iter().map(|one| one.spiffe_id.as_str()).collect::<Vec<_>>(), ["spiffe://example.org/web"]);
        end(child);

        // And all are gone.
        let (asked, mut mailbox, _clock, child, [web, api]) = asking().await;
        let wants = [mailbox.wants.recv().await.unwrap(), mailbox.wants.recv().await.unwrap()];
        say(&mailbox, &[]);
        for want in wants {
            want.told.send(token(if want.entry == web.id { &web } else { &api })).await.unwrap();
        }
        let denial = asked.await.unwrap().map(drop).unwrap_err();
        assert!(matches!(denial, Denial::NoIdentity { .. }), "{denial}");
        end(child);
    }

    #[tokio::test]
    async fn a_token_that_is_held_is_not_given_to_a_broker_whose_root_has_gone() {
        let (asker, trust) = broker(&Authority::new("root", NOW));
        let (door, mailbox, _clock, child, admitted) = named(asker);
        say(&mailbox, &[entry("web")]);
        let Told::Token(held) = token(&entry("web")) else { panic!("a token") };
        let name = (entry("web").id, audience(&["reports"]));
        mailbox.tokens.store(Arc::new(Tokens::new_sync().insert(name, held)));
        let wish = || JwtWish { audience: audience(&["reports"]), id: None };
        assert_eq!(door.jwt_svids(&admitted, wish()).await.unwrap().len(), 1);
        trust.send_replace(roots(&[]));
        let denial = door.jwt_svids(&admitted, wish()).await.map(drop).unwrap_err();
        assert!(matches!(denial, Denial::CallerRefused(_)), "{denial}");
        end(child);
    }

    #[tokio::test]
    async fn whoever_waits_for_as_many_tokens_as_one_may_waits_for_no_more() {
        let (door, mut mailbox, _clock, child, admitted) = named(Asker::Itself);
        say(&mailbox, &[entry("web")]);
        let (door, admitted) = (Arc::new(door), Arc::new(admitted));
        let ask = |admitted: &Arc<Admitted>| -> Asked {
            let (door, admitted) = (door.clone(), admitted.clone());
            let wish = JwtWish { audience: audience(&["reports"]), id: None };
            tokio::spawn(async move { door.jwt_svids(&admitted, wish).await })
        };
        let first = ask(&admitted);
        let want = mailbox.wants.recv().await.unwrap();
        let denial = ask(&admitted).await.unwrap().map(drop).unwrap_err();
        assert_eq!(
            denial.to_string(),
            "user 0 waits for 1 JWT-SVIDs, as many as one may: wait for them, then try again"
        );
        // Another user is not held up.
        let place = Places::new(1, 1).take(Holder::User(1)).unwrap();
        let subject = admitted.subject.clone();
        let other = Admitted { subject, selectors: admitted.selectors.clone(), place, asker: Asker::Itself };
        let second = ask(&Arc::new(other));
        mailbox.wants.recv().await.unwrap().told.send(token(&entry("web"))).await.unwrap();
        assert_eq!(second.await.unwrap().unwrap().len(), 1);
        // And he himself is served again.
        want.told.send(token(&entry("web"))).await.unwrap();
        assert_eq!(first.await.unwrap().unwrap().len(), 1);
        let third = ask(&admitted);
        mailbox.wants.recv().await.unwrap().told.send(token(&entry("web"))).await.unwrap();
        assert_eq!(third.await.unwrap().unwrap().len(), 1);
        end(child);
    }
}
