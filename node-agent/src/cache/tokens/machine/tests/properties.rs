//! Each rule of the machine's head, over random walks.

use super::*;

macro_rules! rule {
    ($name:ident, $check:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]
            #[test]
            fn $name(ops in prop::collection::vec(op(), 1..80)) {
                walk(ops, $check);
            }
        }
    };
}

rule!(one_for_each, |world| {
    let names: Vec<&Name> =
        world.jobs().into_iter().filter_map(|job| if let Job::Held(name) = job { Some(name) } else { None }).collect();
    // What was asked for when the entry was another is under way still, and counts for nothing.
    let current = |name: &&&Name| world.machine.shelves.at(name).is_some_and(|slot| slot.progress != Progress::Idle);
    for request in world
        .actions
        .iter()
        .filter_map(|action| if let Action::Issue(batch) = action { Some(batch) } else { None })
        .flatten()
    {
        let entry = &world.entries.get(&request.entry.id);
        assert!(
            !world.connected || entry.is_some_and(|entry| is_the_same_for(entry, &request.entry)),
            "asked for what is wanted now"
        );
    }
    let queued: Vec<&Name> = world
        .machine
        .queue
        .values()
        .filter_map(|job| if let Job::Held(name) = job { Some(name) } else { None })
        .collect();
    let unique: HashSet<&&Name> = queued.iter().collect();
    assert_eq!(unique.len(), queued.len(), "nothing is queued twice");
    for name in names.iter().filter(current) {
        let slot = world.slot(name);
        match slot.progress {
            Progress::Queued(place) => assert_eq!(world.machine.queue[&place], Job::Held((*name).clone())),
            Progress::UnderWay(request) => {
                assert_eq!(world.machine.under_way[&request].job, Job::Held((*name).clone()))
            }
            Progress::Idle => {}
        }
    }
});

rule!(batches, |world| {
    assert!(world.calls.len() <= MAX_CALLS && world.machine.calls == world.calls.len());
    assert!(world.calls.iter().all(|batch| (1..=MAX_BATCH).contains(&batch.len())));
    if world.connected && world.calls.len() < MAX_CALLS {
        assert!(world.machine.queue.is_empty(), "nothing waits while there is a way");
    }
    if !world.connected {
        assert!(!world.actions.iter().any(|action| matches!(action, Action::Issue(_))));
    }
});

rule!(renewal, |world| {
    for (name, token) in world.held() {
        let slot = world.slot(&name);
        let half = token.got_at.plus(token.svid.expires_at().since(token.got_at) / 2);
        assert!(slot.renew_at < half, "{} is renewed only at {}", token.got_at, slot.renew_at);
        if world.connected && slot.renew_at <= world.now && slot.progress == Progress::Idle {
            assert!(slot.attempts.wait(world.now).is_some(), "neither renewed nor let go");
            assert!(token.is_used());
        }
        let wake = world.machine.next_wake().expect("something expires");
        assert!(wake > world.now && wake <= token.given_until);
    }
});

rule!(alone, |world| {
    let marked = |id: &EntryId| world.machine.directory.entry(id).is_some_and(|entry| entry.jti);
    assert!(!world.held().iter().any(|(name, _)| marked(&name.0) || name.1.json_bytes() > MAX_HELD_BYTES));
    let single: Vec<*const Token> =
        world.given.iter().filter(|token| token.svid.id().path() == "/w2").map(Arc::as_ptr).collect();
    if world.machine.directory.entry(&entry(2).id).is_some_and(|entry| entry.jti) {
        let told = world.told.iter().filter(|(name, told)| marked(&name.0) && matches!(told, Told::Token(_))).count();
        let unique: HashSet<_> = single.iter().rev().take(told).collect();
        assert_eq!(unique.len(), told, "each call has its own");
    }
});

rule!(at_once, |world| {
    for (name, token) in world.held() {
        let entry = world.machine.directory.entry(&name.0).expect("an entry that is there");
        assert_eq!(*token.svid.id(), entry.spiffe_id);
        assert!(token.is_trusted_by(world.machine.directory.own()), "its key has fallen");
        let life = token.svid.expires_at().since(token.svid.issued_at().unwrap());
        assert_eq!(life, entry.jwt_ttl.unwrap_or(LIFE), "the life that the entry says");
    }
    // One that was used and whose key alone has fallen is asked for anew.
    for (name, token) in &world.held_before {
        let stays = world.machine.directory.entry(&name.0).is_some_and(|now| now.spiffe_id == *token.svid.id());
        let fell = !token.is_trusted_by(world.machine.directory.own()) && token.is_good(world.now) && token.is_used();
        if let Some(slot) = world.machine.shelves.at(name)
            && world.connected
            && stays
            && fell
        {
            assert!(slot.held.is_some() || slot.progress != Progress::Idle);
        }
    }
});

rule!(never_expired, |world| {
    for (_, told) in &world.told {
        if let Told::Token(token) = told {
            assert!(world.now.plus(Duration::from_secs(5)) <= token.svid.expires_at());
            assert!(token.is_good(world.now));
        }
    }
    assert!(world.held().iter().all(|(_, token)| token.is_good(world.now)), "what is published is good");
});

rule!(refusal, |world| {
    for slot in world.machine.shelves.all_slots() {
        // A clock that is put back begins a wait anew that was over.
        let waits = slot.attempts.failure() == Failure::Permanent && slot.attempts.wait(world.now).is_some();
        if waits && !world.was_put_back {
            assert!(slot.waiters.is_empty() && slot.progress == Progress::Idle, "{slot:?}");
        }
    }
    for (name, token) in &world.held_before {
        if world.answered.contains(name) && token.is_good(world.now) {
            // It may have made room for one whose entry had changed, who then wanted another.
            let is_full = world.machine.shelves.sizes().iter().sum::<usize>() == BOUNDS.all
                || world.machine.shelves.names_of(&name.0).len() == BOUNDS.per_entry;
            assert!(world.machine.tokens().contains_key(name) || is_full, "what is held stays");
        }
    }
});

rule!(everyone_is_told, |world| {
    for (waiter, name) in &world.waiting {
        assert_eq!(world.machine.waiters.get(waiter).map(|waiting| &waiting.name), Some(name));
        match world.machine.shelves.at(name).filter(|slot| slot.waiters.contains(waiter)) {
            Some(slot) => {
                assert!(slot.held.is_none(), "it waits for what is there");
                let soon = slot.progress != Progress::Idle || slot.attempts.wait(world.now).is_some();
                assert!(soon || !world.connected, "nothing is done for it");
            }
            None => assert!(world.jobs().contains(&&Job::Alone(*waiter)), "nobody knows it"),
        }
    }
    assert_eq!(world.machine.waiters.len(), world.waiting.len());
});

rule!(bounds, |world| {
    let sizes = world.machine.shelves.sizes();
    let slots: usize = sizes.iter().sum();
    assert!(slots <= BOUNDS.all);
    assert!(sizes.iter().all(|size| (1..=BOUNDS.per_entry).contains(size)));
    assert!(world.machine.agenda.len() <= slots, "nothing is on the agenda twice");
    let held = world.machine.shelves.all_slots().filter(|slot| slot.held.is_some()).count();
    assert_eq!(held, world.machine.tokens().size());
    assert!(world.machine.queue.len() <= slots + world.waiting.len());
    // Nothing good makes room without a server, nor for an entry that has as much.
    let gone: Vec<&Name> = world.held_before.iter().map(|(name, _)| name).collect();
    let gone = gone.into_iter().filter(|name| world.machine.directory.entry(&name.0).is_some());
    if let Some(wanted) = &world.wanted {
        for name in gone.filter(|name| world.machine.shelves.at(name).is_none()) {
            assert!(world.connected, "{name:?} made room for what cannot come");
            let of = |id: &EntryId| world.machine.shelves.names_of(id).len();
            assert!(name.0 == *wanted || of(&name.0) + 1 >= of(wanted), "{name:?} made room for {wanted:?}");
        }
    }
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_asks_gets_a_token_in_the_end(ops in prop::collection::vec(op(), 1..80), number in 0..4_u8, which in 0..4_usize) {
        let mut world = walk(ops, |_| {});
        world.entries.insert(entry(number).id, entry(number));
        world.learn();
        let waiter = world.want(number, which);
        for _ in 0..40 {
            if world.waiting.contains_key(&waiter) {
                world.answer_all();
                world.pass(world.now.plus(Duration::from_secs(60)));
            }
        }
        prop_assert!(!world.waiting.contains_key(&waiter));
    }
}
