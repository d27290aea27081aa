//! Rules where the moments matter, as stories.

use super::*;

/// A world with one entry and one subscriber, told.
fn settled() -> World {
    let mut world = World::new();
    world.server.insert(entry(1).id, entry(1));
    world.snapshot();
    world.step(Op::AnswerAll);
    world.step(Op::Subscribe(1));
    assert_eq!(world.told[&0].identities.len(), 1);
    world
}

#[test]
fn refusal() {
    let mut world = settled();
    let first = world.told[&0].clone();
    let end = first.identities[0].svid.lifetime().not_after;
    let second = RegistrationEntry { selectors: selectors(2), ..entry(2) };
    let mut attempts = 0;
    while world.now < end {
        world.pass(world.machine.next_wake().unwrap().min(end));
        attempts += world.asked.len();
        // Nobody waits for another's refusal.
        if attempts == 3 {
            world.server.insert(second.id.clone(), second.clone());
            world.change(Update { entries: vec![Arc::new(second.clone())], ..Update::default() });
            assert_eq!(world.issued().map(|entry| &entry.id).collect::<Vec<_>>(), [&second.id]);
            world.answer(vec![Arc::new(second.clone())], How::Issued);
        }
        world.answer(world.asked.clone(), How::Refused);
        assert_eq!(world.told[&0], first, "the old SVID stays");
    }
    assert!((4..40).contains(&attempts), "{attempts}");
    world.pass(end.plus(SECOND));
    world.answer(world.asked.clone(), How::Refused);
    assert!(world.told[&0].identities.is_empty(), "expired, and told so");
    // A change of the entry is tried at once.
    let changed = RegistrationEntry { dns_names: vec!["web".parse().unwrap()], ..entry(1) };
    world.server.insert(changed.id.clone(), changed.clone());
    world.change(Update { entries: vec![Arc::new(changed)], ..Update::default() });
    assert_eq!(world.asked.len(), 1);
}

#[test]
fn clock() {
    let mut world = settled();
    let issued = world.told[&0].identities[0].svid.lifetime();
    // Put forward past the end: gone and asked for in the same step, and held back while the answer is to come.
    world.pass(issued.not_after.plus(Duration::from_secs(7200)));
    assert_eq!(world.asked.len(), 1);
    world.step(Op::AnswerAll);
    assert!(world.told[&0].identities[0].svid.lifetime().contains(world.now));
    // Put back before the beginning: asked for at once, and served meanwhile.
    let before = world.told[&0].clone();
    world.pass(START);
    assert_eq!((world.asked.len(), &world.told[&0]), (1, &before));
    // A wait that began in the future is over.
    world.answer(world.asked.clone(), How::Failed);
    world.pass(world.now.minus(Duration::from_secs(86_400 / 2)));
    assert_eq!(world.asked.len(), 1);
    world.step(Op::AnswerAll);
    assert!(world.told[&0].identities[0].svid.lifetime().contains(world.now));
}

#[test]
fn what_is_inside_an_svid_is_reissued_and_what_is_not_is_told() {
    let mut world = settled();
    let put = |world: &mut World, entry: RegistrationEntry| {
        world.server.insert(entry.id.clone(), entry.clone());
        world.change(Update { entries: vec![Arc::new(entry)], ..Update::default() });
    };
    put(&mut world, RegistrationEntry { hint: "new".into(), ..entry(1) });
    assert_eq!((world.asked.len(), &*world.told[&0].identities[0].hint), (0, "new"));
    let with_name = RegistrationEntry { dns_names: vec!["web".parse().unwrap()], ..entry(1) };
    put(&mut world, with_name.clone());
    assert_eq!((world.asked.len(), world.told[&0].identities.len()), (1, 1), "the old one stays meanwhile");
    world.step(Op::AnswerAll);
    put(&mut world, RegistrationEntry { spiffe_id: domain("example.org").member("/new").unwrap(), ..with_name });
    world.step(Op::AnswerAll);
    assert_eq!(world.told[&0].identities[0].svid.id().path(), "/new");
}

#[test]
fn a_taint_replaces_everything_by_batches() {
    let mut world = World::new();
    world.machine = Machine::new(own_bundle(false, false, 1), 2000);
    for number in 0..1200_u32 {
        let id = EntryId::parse(&format!("e{number}")).unwrap();
        world.server.insert(id.clone(), RegistrationEntry { id, ..entry(1) });
    }
    world.snapshot();
    let mut rounds = Vec::new();
    while !world.asked.is_empty() {
        rounds.push(world.asked.len());
        world.step(Op::AnswerAll);
    }
    assert_eq!(rounds, [500, 500, 200]);
    world.step(Op::Taint);
    assert_eq!(world.asked.len(), 500);
    while !world.asked.is_empty() {
        world.step(Op::AnswerAll);
    }
    let tainted = |slot: &Slot<X509Svid>| slot.held.as_ref().unwrap().svid.is_tainted_by(&world.bundle);
    assert!(!world.machine.slots.values().any(tainted));
}

#[test]
fn a_server_that_goes_on_signing_with_a_tainted_root_is_not_hammered() {
    let mut world = settled();
    world.step(Op::Taint);
    world.root = 0;
    let mut attempts = 0;
    let end = world.now.plus(Duration::from_secs(60));
    while world.now < end {
        attempts += world.asked.len();
        world.answer(world.asked.clone(), How::Issued);
        world.pass(world.machine.next_wake().unwrap());
    }
    assert!((2..15).contains(&attempts), "{attempts}");
}

#[test]
fn a_revision_that_taints_a_root_is_acknowledged_once_nothing_below_it_is_held() {
    let mut world = settled();
    let second = RegistrationEntry { selectors: selectors(2), ..entry(2) };
    world.server.insert(second.id.clone(), second.clone());
    world.change(Update { entries: vec![Arc::new(second.clone())], ..Update::default() });
    world.step(Op::AnswerAll);
    let before = world.revision;
    world.step(Op::Taint);
    assert_eq!((world.asked.len(), world.acknowledged), (2, before));
    world.answer(vec![world.asked[0].clone()], How::Issued);
    assert_eq!(world.acknowledged, before, "one is still to come");
    // What comes meanwhile waits behind it, and then the newest is acknowledged.
    world.step(Op::Foreign);
    assert_eq!(world.acknowledged, before);
    // That the other is refused is no reason to wait for ever.
    world.answer(world.asked.clone(), How::Refused);
    assert_eq!(world.acknowledged, before + 2);
    world.step(Op::Foreign);
    assert_eq!(world.acknowledged, before + 3, "nor does the wait begin anew");
}

#[test]
fn an_svid_that_was_under_way_when_its_root_was_tainted_is_replaced_at_once() {
    let mut world = World::new();
    world.server.insert(entry(1).id, entry(1));
    world.snapshot();
    assert_eq!((world.asked.len(), world.acknowledged), (1, 1));
    world.step(Op::Taint);
    assert_eq!(world.acknowledged, 1, "what is under way may be below the tainted root");
    world.root = 0;
    world.step(Op::AnswerAll);
    assert_eq!((world.asked.len(), world.acknowledged), (1, 1));
    world.root = 1;
    world.step(Op::AnswerAll);
    assert_eq!((world.asked.len(), world.acknowledged), (0, 2));
}
