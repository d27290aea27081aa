//! Each rule of the machine's head, over random walks.

use super::*;

macro_rules! rule {
    ($name:ident, $check:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
            #[test]
            fn $name(ops in prop::collection::vec(op(), 1..60)) {
                walk(ops, $check);
            }
        }
    };
}

rule!(matching, |world| {
    for (id, state) in world.published() {
        let entitling = world.entitling(id);
        for identity in state.identities.iter() {
            let entry = entitling.iter().find(|entry| entry.id == identity.entry.id).expect("entitled");
            assert_eq!(entry.spiffe_id, *identity.svid.id());
        }
    }
});

rule!(prefetch, |world| {
    let mut order: Vec<_> = world.known.values().map(|entry| (entry.created_at, &entry.id)).collect();
    order.sort();
    for asked in world.issued() {
        let age = order.iter().position(|(_, id)| **id == asked.id).unwrap();
        let somebody = world.subscribers.values().any(|found| asked.selectors.is_subset_of(found));
        assert!(age < 3 || somebody, "{} is nobody's, and number {age}", asked.id);
        assert!(asked.is_live(world.now) && world.connected);
    }
});

rule!(one_in_flight, |world| {
    let mut asked: Vec<_> = world.issued().map(|entry| entry.id.clone()).collect();
    assert!(asked.iter().all(|id| !world.asked_before.contains(id) || world.answered.contains(id)));
    let count = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(count, asked.len());
    let mut under_way: Vec<_> = world.asked.iter().map(|entry| &entry.id).collect();
    under_way.sort();
    assert!(under_way.windows(2).all(|pair| pair[0] != pair[1]), "{under_way:?}");
});

rule!(renewal, |world| {
    // Whatever has happened, the machine wants to wake before the oldest SVID it holds is old.
    if !world.connected {
        return;
    }
    let idle = |id: &EntryId| !world.asked.iter().any(|asked| asked.id == *id);
    let mut order: Vec<_> = world.known.values().filter(|entry| entry.is_live(world.now)).collect();
    order.sort_by_key(|entry| (entry.created_at, entry.id.clone()));
    let wanted = |entry: &&&RegistrationEntry| {
        world.subscribers.values().any(|found| entry.selectors.is_subset_of(found)) && idle(&entry.id)
    };
    if order.iter().any(|entry| wanted(&entry)) {
        let wake = world.machine.next_wake().expect("something is to be renewed");
        assert!(wake > world.now && wake <= world.now.plus(Duration::from_secs(2220)), "{wake} at {}", world.now);
    }
});

rule!(whole, |world| {
    for (id, state) in world.published() {
        let order: Vec<_> = state.identities.iter().map(|one| (one.entry.created_at, one.entry.id.clone())).collect();
        assert!(order.is_sorted(), "{order:?}");
        // What it had and is still entitled to, it has again.
        let Some(before) = world.told_before.get(&id) else { continue };
        for had in before.identities.iter().filter(|had| world.now <= had.svid.lifetime().not_after) {
            let still =
                world.entitling(id).iter().any(|entry| entry.id == had.entry.id && entry.spiffe_id == *had.svid.id());
            assert!(
                !still
                    || world.begun_anew.contains(&had.entry.id)
                    || state.identities.iter().any(|one| one.entry.id == had.entry.id),
                "{} is lost",
                had.entry.id
            );
        }
        assert_eq!(state.bundle.sequence(), world.machine.own.sequence());
    }
});

rule!(first_state, |world| {
    for (id, state) in world.published().filter(|(id, _)| !world.told_before.contains_key(id)) {
        assert!(world.synced, "told before anything was known");
        for entry in world.entitling(id) {
            let has = state.identities.iter().any(|one| one.entry.id == entry.id);
            assert!(has || !world.connected || world.answered.contains(&entry.id), "{} is not settled", entry.id);
        }
    }
});

rule!(never_expired, |world| {
    for (id, state) in world.published() {
        assert!(state.identities.iter().all(|one| world.now <= one.svid.lifetime().not_after), "to {id}");
    }
});

rule!(at_once, |world| {
    for (id, state) in &world.told {
        let entitling = world.entitling(*id);
        let gone = |one: &&Identity| {
            world.now > one.svid.lifetime().not_after
                || !entitling.iter().any(|entry| entry.id == one.entry.id && entry.spiffe_id == *one.svid.id())
        };
        let (gone, rest): (Vec<_>, Vec<_>) = state.identities.iter().partition(gone);
        let is_left = rest.iter().any(|one| !world.begun_anew.contains(&one.entry.id));
        // The one exception: nothing else is left, and an answer is to come.
        let awaited = !is_left && world.asked.iter().any(|asked| entitling.iter().any(|entry| entry.id == asked.id));
        assert!(gone.is_empty() || awaited, "{id} still has {gone:?}");
    }
});

rule!(no_empty_state_by_haste, |world| {
    for (id, _) in world.published().filter(|(_, state)| state.identities.is_empty()) {
        for entry in world.entitling(id) {
            assert!(!world.connected || world.answered.contains(&entry.id), "{} had no answer yet", entry.id);
        }
    }
});

rule!(hints, |world| {
    for (_, state) in world.published() {
        let mut seen = HashSet::new();
        for one in state.identities.iter() {
            let first = seen.insert(one.entry.hint.clone());
            assert_eq!(*one.hint, *if first { one.entry.hint.as_str() } else { "" });
        }
    }
});

rule!(no_repeats, |world| {
    for (id, state) in world.published() {
        assert_ne!(world.told_before.get(&id), Some(state));
    }
});

rule!(acknowledge, |world| {
    let at = world.actions.iter().position(|action| matches!(action, Action::Acknowledge(_)));
    if let Some(at) = at {
        assert_eq!(at + 1, world.actions.len(), "something follows");
        assert!(matches!(world.actions[at], Action::Acknowledge(revision) if revision == world.revision));
        // Nobody who asks now is given what the next revision may make worthless.
        let given = |slot: &&Slot<X509Svid>| {
            !slot.matched_by.is_empty() && slot.entry.is_live(world.now) && slot.is_good(world.now)
        };
        for slot in world.machine.slots.values().filter(given) {
            let fallen = slot.held.as_ref().is_some_and(|held| has_fallen(&held.svid, &world.machine.own));
            assert!(!fallen || world.in_vain.contains(&slot.entry.id), "{} is not replaced yet", slot.entry.id);
        }
    }
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everyone_gets_everything_in_the_end(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = walk(ops, |_| {});
        // Long wins: a clock that was put back must not leave SVIDs of the future behind.
        world.server.values_mut().for_each(|entry| entry.expires_at = None);
        world.come_to_rest();
        prop_assert_eq!(world.acknowledged, world.revision);
        for id in world.subscribers.keys() {
            let state = world.told.get(id).expect("told");
            let has: Vec<_> = state.identities.iter().map(|one| one.svid.id()).collect();
            let wants: Vec<_> = world.entitling(*id).into_iter().map(|entry| &entry.spiffe_id).collect();
            prop_assert_eq!(has, wants);
            for one in state.identities.iter() {
                prop_assert!(one.svid.lifetime().contains(world.now), "{:?} at {}", one.svid.lifetime(), world.now);
                prop_assert!(one.svid.clone().verify(&world.bundle, world.now).is_ok());
                prop_assert!(!one.svid.is_tainted_by(&world.bundle));
            }
            prop_assert_eq!(&state.bundle, &world.bundle);
        }
    }

    #[test]
    fn server_gone(ops in prop::collection::vec(op(), 1..60), mask in 1..16_u8) {
        let mut world = walk(ops, |_| {});
        world.step(Op::Gone);
        world.step(Op::Subscribe(mask));
        let id = world.next_subscriber - 1;
        prop_assert_eq!(world.issued().count(), 0);
        // Whoever asks now gets all that is held and valid for it.
        let good = |entry: &&RegistrationEntry| world.machine.slots[&entry.id].is_good(world.now);
        let held: Vec<_> = world.entitling(id).into_iter().filter(good).map(|entry| entry.id.clone()).collect();
        let told = world.told.get(&id).map(|state| state.identities.iter().map(|one| one.entry.id.clone()).collect());
        prop_assert_eq!(told.unwrap_or_else(Vec::new), held);
    }
}
