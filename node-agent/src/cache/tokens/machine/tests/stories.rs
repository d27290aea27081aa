//! Rules where the moments matter, as stories.

use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A world in which the token for the first audience of entry 1 is held.
fn settled() -> (World, Arc<Token>) {
    let mut world = World::new();
    world.want(1, 0);
    world.answer_all();
    let [(_, Told::Token(token))] = &world.told[..] else { panic!("{:?}", world.told) };
    let token = token.clone();
    (world, token)
}

fn only(world: &World) -> Arc<Token> {
    let held = world.held();
    let [(_, token)] = &held[..] else { panic!("{held:?}") };
    token.clone()
}

#[test]
fn whoever_asks_meanwhile_gets_the_same() {
    let mut world = World::new();
    for _ in 0..16 {
        world.want(1, 0);
    }
    world.want(1, 3);
    assert_eq!(world.calls.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
    world.answer(0, How::Issued);
    assert_eq!(world.told.len(), 16);
    let first = world.given[0].clone();
    assert!(world.given.iter().all(|token| Arc::ptr_eq(token, &first)));
    world.answer(0, How::Issued);
    assert_eq!(world.given.last().unwrap().svid.audience(), ["a", "b"]);
    // A door that looked just before.
    world.want(1, 0);
    assert!(Arc::ptr_eq(world.given.last().unwrap(), &first) && world.calls.is_empty());
}

#[test]
fn what_is_wanted_while_all_ways_are_taken_goes_together() {
    let mut world = World::new();
    world.machine.shelves.bounds = Bounds { all: 100, per_entry: 100 };
    for number in 0..4 {
        for which in 0..4 {
            world.want(number, which);
        }
    }
    assert_eq!(world.calls.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1]);
    world.answer(0, How::Issued);
    assert_eq!(world.calls.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 12]);
}

#[test]
fn a_token_is_renewed_while_it_is_used_and_then_let_go() {
    let (mut world, first) = settled();
    let renewal = world.machine.next_wake().unwrap();
    assert!(renewal < START.plus(LIFE / 2) && renewal > START.plus(LIFE / 4), "{renewal}");
    world.pass(renewal);
    assert_eq!(world.calls.len(), 1);
    assert!(Arc::ptr_eq(&only(&world), &first), "and is given out meanwhile");
    world.answer_all();
    let second = only(&world);
    assert!(!Arc::ptr_eq(&second, &first));
    // Nobody has asked for the second one.
    world.pass(world.machine.next_wake().unwrap());
    assert!(world.held().is_empty() && world.calls.is_empty() && world.machine.shelves.names().is_empty());
    assert_eq!(world.machine.next_wake(), None);
}

#[test]
fn a_renewal_that_fails_is_tried_again_and_the_token_stays_until_it_expires() {
    for how in [How::Failed, How::Refused] {
        let (mut world, first) = settled();
        let mut attempts = 0;
        while world.now < first.given_until {
            assert!(Arc::ptr_eq(&only(&world), &first));
            world.pass(world.machine.next_wake().unwrap());
            attempts += world.calls.len();
            while !world.calls.is_empty() {
                world.answer(0, how);
            }
        }
        assert!(world.held().is_empty());
        assert!((3..20).contains(&attempts), "{attempts} after {how:?}");
    }
}

#[test]
fn who_is_refused_is_told_and_nobody_asks_for_a_while() {
    let mut world = World::new();
    world.want(1, 0);
    world.answer(0, How::Refused);
    assert!(matches!(&world.told[..], [(_, Told::Refused(why))] if &**why == "not this one"));
    world.want(1, 0);
    assert!(matches!(&world.told[..], [(_, Told::Refused(_))]) && world.calls.is_empty());
    // Another audience is another question.
    world.want(1, 1);
    assert_eq!(world.calls.len(), 1);
    world.answer_all();
    world.pass(START.plus(seconds(16)));
    world.want(1, 0);
    world.answer_all();
    assert!(matches!(&world.told[..], [(_, Told::Token(_))]));
}

#[test]
fn who_waits_through_a_failure_is_tried_for_again() {
    let mut world = World::new();
    let waiter = world.want(1, 0);
    world.answer(0, How::Failed);
    assert!(world.waiting.contains_key(&waiter) && world.calls.is_empty());
    world.pass(world.machine.next_wake().unwrap());
    world.answer_all();
    assert!(!world.waiting.contains_key(&waiter));
    // Whoever leaves is not asked for.
    let waiter = world.want(2, 0);
    world.answer(0, How::Failed);
    world.waiting.remove(&waiter);
    world.handle(Event::Left(waiter));
    world.pass(world.now.plus(seconds(60)));
    assert!(world.calls.is_empty());
    assert_eq!(world.machine.shelves.ids().len(), 1);
}

#[test]
fn without_a_server_tokens_live_on_and_whoever_asks_waits_for_it() {
    let (mut world, first) = settled();
    world.step(Op::Gone);
    let waiter = world.want(2, 0);
    while world.now < first.given_until {
        assert!(Arc::ptr_eq(&only(&world), &first));
        assert!(world.calls.is_empty());
        world.pass(world.machine.next_wake().unwrap());
    }
    assert!(world.held().is_empty());
    world.step(Op::Back);
    world.answer_all();
    assert!(!world.waiting.contains_key(&waiter));
}

#[test]
fn a_taint_replaces_what_is_used() {
    let (mut world, first) = settled();
    world.want(2, 0);
    world.answer_all();
    // As after a renewal: nobody has used it since.
    let unused = world.held().into_iter().find(|(name, _)| name.0 == entry(2).id).unwrap().1;
    unused.use_at(Timestamp::default());
    world.step(Op::Taint);
    assert!(world.held().is_empty());
    assert_eq!(world.calls.concat().len(), 1);
    world.answer_all();
    assert_ne!(only(&world).svid.kid(), first.svid.kid());
}

#[test]
fn what_was_signed_by_a_key_that_fell_meanwhile_is_asked_for_again_at_once() {
    let mut world = World::new();
    let waiter = world.want(1, 0);
    world.step(Op::RemoveKey);
    world.key = 0;
    world.answer(0, How::Issued);
    assert!(world.waiting.contains_key(&waiter) && world.calls.len() == 1);
    // A server that goes on signing with it is not hammered.
    world.answer(0, How::Issued);
    assert!(world.waiting.contains_key(&waiter) && world.calls.is_empty());
    world.key = 1;
    world.pass(world.machine.next_wake().unwrap());
    world.answer_all();
    assert!(!world.waiting.contains_key(&waiter));
}

#[test]
fn each_call_for_an_entry_with_jti_has_a_token_of_its_own() {
    let mut world = World::new();
    world.entries.insert(entry(1).id, RegistrationEntry { jti: true, ..entry(1) });
    world.learn();
    world.want(1, 0);
    world.want(1, 0);
    assert_eq!(world.calls.len(), 2);
    world.answer_all();
    let [one, other] = &world.given[..] else { panic!("{:?}", world.given) };
    assert!(!Arc::ptr_eq(one, other) && world.held().is_empty());
    world.want(1, 0);
    world.answer(0, How::Failed);
    assert!(matches!(&world.told[..], [(_, Told::Failed)]));
}

#[test]
fn an_entry_that_changes_while_someone_waits_is_asked_for_as_it_is_now() {
    let mut world = World::new();
    let waiter = world.want(1, 0);
    world.step(Op::Put { number: 1, other_id: false, short: true, jti: false, hint: false });
    assert_eq!(world.calls.len(), 2);
    world.answer(0, How::Issued);
    assert!(world.waiting.contains_key(&waiter), "that was for what the entry was before");
    world.answer(0, How::Issued);
    assert_eq!(world.given[0].svid.expires_at(), START.plus(seconds(60)));
    world.want(2, 0);
    world.step(Op::Remove(2));
    assert!(matches!(&world.told[..], [(_, Told::Gone)]));
}

#[test]
fn the_one_used_least_lately_makes_room() {
    let mut world = World::new();
    for which in 0..3 {
        world.want(1, which);
        world.answer_all();
        world.pass(world.now.plus(seconds(2)));
    }
    let of_b = world.held().into_iter().find(|(name, _)| name.1 == audience(&["b"])).unwrap().1;
    of_b.use_at(world.now);
    world.held().into_iter().find(|(name, _)| name.1 == audience(&["a"])).unwrap().1.use_at(world.now);
    world.want(1, 3);
    world.answer_all();
    let mut held: Vec<_> = world.held().into_iter().map(|(name, _)| name.1).collect();
    held.sort();
    assert_eq!(held, [audience(&["a"]), audience(&["a", "b"]), audience(&["b"])]);
    // Where none can make room, the call has its own.
    let mut world = World::new();
    for which in 0..4 {
        world.want(1, which);
    }
    world.answer_all();
    assert_eq!((world.given.len(), world.held().len()), (4, 3));
}

#[test]
fn a_token_with_a_life_of_seconds_is_given_out_for_half_of_it() {
    let mut world = World::new();
    world.entries.insert(entry(1).id, RegistrationEntry { jwt_ttl: Some(seconds(6)), ..entry(1) });
    world.learn();
    world.want(1, 0);
    world.answer_all();
    assert_eq!(only(&world).given_until, START.plus(seconds(3)));
}

/// Audiences of which no two are the same, each of `bytes` bytes and full of what JSON escapes.
fn audiences(count: usize, bytes: usize) -> impl Iterator<Item = Audience> {
    (0..count).map(move |at| {
        let values = (0..bytes.div_ceil(512)).map(|part| format!("{at:04}.{part:02}"));
        let fill = |value: String| format!("{value}{}", "\u{1}".repeat(bytes.min(512) - value.len()));
        Audience::parse(&values.map(fill).collect::<Vec<_>>()).unwrap()
    })
}

#[test]
fn a_batch_and_its_answer_fit_whatever_is_asked_for() {
    use prost::Message as _;

    let mut world = World::new();
    let path = format!("/{}", "x".repeat(2000));
    let mut long = entry(1);
    long.spiffe_id = domain().member(&path).unwrap();
    world.entries.insert(long.id.clone(), long.clone());
    world.learn();
    for audience in audiences(600, 4096) {
        world.want_for(1, audience);
    }
    let mut sizes = Vec::new();
    while let Some(batch) = world.calls.first() {
        sizes.push(batch.len());
        let request = |of: &Request| spiffe::proto::v1::JwtSvidRequest {
            entry_id: of.entry.id.to_string(),
            audience: of.audience.values().to_vec(),
        };
        let asked = spiffe::proto::v1::IssueJwtSvidsRequest { requests: batch.iter().map(request).collect() };
        assert!(asked.encoded_len() <= batch.iter().map(Request::bytes).sum(), "more than was thought");
        assert!(asked.encoded_len() < 1 << 20, "{} bytes are more than a server takes", asked.encoded_len());
        let token = KEYS[0].jwt_svid(&long.spiffe_id, &batch[0].audience, (START, LIFE), None);
        // One token is as long as the other. An issuer's URL may be 2 KiB more, before base64.
        assert!((token.len() + 3000) * batch.len() < 8 << 20, "{} times {}", batch.len(), token.len());
        world.answer(0, How::Failed);
    }
    assert_eq!(sizes.iter().sum::<usize>(), 600);
    assert!(sizes.iter().max() > Some(&16), "{sizes:?}");
    assert!(world.waiting.is_empty() && world.machine.shelves.names().is_empty(), "none of that is held");
    // What is small goes as it always did.
    world.machine.shelves.bounds = Bounds { all: 1000, per_entry: 1000 };
    for audience in audiences(504, 64) {
        world.want_for(2, audience);
    }
    world.answer(0, How::Failed);
    assert_eq!(world.calls.last().unwrap().len(), MAX_BATCH);
}

#[test]
fn a_flood_for_one_entry_pushes_out_its_own_tokens_alone() {
    let mut world = World::new();
    world.machine.shelves.bounds = Bounds { all: 8, per_entry: 6 };
    for (number, which) in [(0, 0), (3, 0), (3, 1)] {
        world.want(number, which);
        world.answer_all();
    }
    let others = world.held();
    // Those were used long ago, and all of the flood just now.
    world.pass(world.now.plus(seconds(60)));
    for audience in audiences(20, 64) {
        world.want_for(1, audience);
        world.answer_all();
        assert!(others.iter().all(|(name, _)| world.machine.tokens().contains_key(name)));
    }
    assert_eq!(world.held().len(), 8);
    // The flooder makes room for everyone else, too, and of his the one that was used least lately.
    let names = world.machine.shelves.names_of(&entry(1).id);
    for name in &names[1..] {
        world.machine.tokens().get(name).unwrap().use_at(world.now.plus(seconds(1)));
    }
    world.want(2, 0);
    world.answer_all();
    assert!(others.iter().all(|(name, _)| world.machine.tokens().contains_key(name)));
    assert_eq!(world.machine.shelves.names_of(&entry(1).id), names[1..]);
}

#[test]
fn without_a_server_nothing_that_is_good_makes_room() {
    let mut world = World::new();
    for which in 0..3 {
        world.want(1, which);
        world.answer_all();
    }
    world.step(Op::Gone);
    let waiter = world.want(1, 3);
    assert_eq!(world.held().len(), 3);
    // It is asked for all the same, once there is one again.
    world.step(Op::Back);
    world.answer_all();
    assert!(!world.waiting.contains_key(&waiter) && world.held().len() == 3);
}

#[test]
fn whoever_leaves_is_not_asked_for_although_he_was_to_have_his_own() {
    let mut world = World::new();
    world.step(Op::Gone);
    let (waiter, other) = (world.want(1, 4), world.want(1, 4));
    world.waiting.remove(&waiter);
    world.handle(Event::Left(waiter));
    world.step(Op::Back);
    assert_eq!(world.calls.concat().len(), 1);
    world.answer_all();
    assert!(!world.waiting.contains_key(&other));
}
