//! What earlier lives left: finished ranges, waiting messages, lost and changed records (I1).

use super::*;

/// Retries noted by a life whose clock was a month ahead: with and without their payload in the ledger they go on as
/// soon as any retry would.
#[actix_rt::test]
async fn retries_noted_by_a_clock_that_was_ahead_are_not_waited_for() {
    use crate::core::ledger::entry::{Kept, Waiting};
    let mut world = World::new();
    world.append((0..4).map(|n| (Some(format!("k{n}")), n)));
    world.lives = 1;
    let month = Duration::from_secs(30 * 86_400);
    let ahead = Clock::start().now().plus(month);
    for n in 1..=2 {
        let key = crate::core::message_id::key_hash(format!("k{n}").as_bytes());
        let intent = Intent {
            first_try: ahead,
            slot: ahead,
            ..intent(n, key)
        };
        let later = Outcome {
            when: ahead,
            ..outcome(n, 503, later(key, ahead, ahead.plus(month)))
        };
        let mut bodies = vec![Body::Intent(intent), Body::Outcome(later)];
        if n == 2 {
            bodies.push(Body::Waiting(Waiting {
                at: AT,
                id: id_of(n),
                offset: n,
                round: 1,
                attempts: 1,
                when: ahead,
                not_before: ahead.plus(month),
                kept: Box::new(Kept {
                    key,
                    value: bytes::Bytes::from_static(b"2"),
                    ..Kept::default()
                }),
            }));
        }
        bodies.into_iter().for_each(|body| world.wrote(body));
    }
    let mut config = partner();
    config.retry.longest_retry_after = Duration::from_millis(20);
    let life = world.live(config, |_, _| Reply::Take);
    // Nothing waits for next month.
    patience::within(life).await;
    assert_eq!(world.partner.lock().seen.len(), 4);
    assert_eq!(world.position(), 4);
}

/// One key waits for long: it, and what stands behind it, goes into the ledger, and the position passes all of it. A
/// restart reads none of it, and sends it in order from there.
#[actix_rt::test]
async fn what_waits_long_holds_no_position_and_keeps_its_order_over_a_restart() {
    let mut world = World::new();
    world.waiting_after = Duration::from_millis(300);
    world.append(keyed(70));
    let patient = patient();
    let plan = |n, _| match n {
        3 => Reply::TryLater,
        _ => Reply::Take,
    };
    let passed = |state: &LaneState| state.partitions.get(&AT).is_some_and(|p| p.position == 70);
    // A backoff with jitter may be shorter than what counts as long; then the age counts.
    world.live_until(patient, plan, passed).await;
    let waiting = |world: &World| {
        let state = world.memory.state.lock();
        let mut held: Vec<_> = state.partitions[&AT].messages.values().collect();
        held.sort_by_key(|m| m.offset);
        held
    };
    let held = waiting(&world);
    assert_eq!(
        held.iter().map(|m| m.offset).collect::<Vec<_>>(),
        (3..70).step_by(7).collect::<Vec<_>>()
    );
    assert!(held.iter().all(|m| m.payload.is_some()));
    assert!(held.iter().all(|m| matches!(m.state, MessageState::Later { .. })));
    assert_eq!((held[0].attempts, held[1].attempts), (1, 0));
    let first = std::mem::take(&mut world.partner.lock().seen);
    assert_eq!(first.len(), 61, "60 of the other keys, and one attempt");

    // The retry is due: time does not pass in a test, so the ledger says so.
    for m in &held[..1] {
        let (id, _) = {
            let state = world.memory.state.lock();
            let found = state.partitions[&AT]
                .messages
                .iter()
                .find(|(_, o)| o.offset == m.offset);
            found.expect("it waits")
        };
        let later = Outcome {
            id,
            attempts: 2,
            when: Time(2),
            ..outcome(m.offset, 429, later(m.key, m.first_try, Time(3)))
        };
        world.wrote(Body::Outcome(later));
    }
    let read = world.log.read_count(world.input);
    world.live(partner(), |_, _| Reply::Take).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    assert_eq!(
        seen.iter().map(|s| s.1).collect::<Vec<_>>(),
        (3..70).step_by(7).collect::<Vec<_>>()
    );
    // Their payloads alone: this test's are in the topic.
    assert_eq!(world.log.read_count(world.input) - read, 10);
    assert!(waiting(&world).is_empty());
    assert_eq!(world.position(), 70);
}

/// A thousand finished records above one that waits: a restart reads around them.
#[actix_rt::test]
async fn finished_ranges_are_not_read_again() {
    let mut world = World::new();
    // It holds the position for as long as this test lasts.
    world.waiting_after = Duration::from_secs(86_400);
    world.append(keyed(1_000));
    let patient = patient();
    let plan = |n, _| match n {
        0 => Reply::TryLater,
        _ => Reply::Take,
    };
    let all_but_one_key = |state: &LaneState| {
        let p = state.partitions.get(&AT);
        p.is_some_and(|p| p.position == 0 && p.counts.delivered == 1_000 - 143)
    };
    world.live_until(patient.clone(), plan, all_but_one_key).await;
    world.append([(Some("new".to_owned()), 1_000)]);
    let read = world.log.read_count(world.input);
    let new_one = |state: &LaneState| state.partitions[&AT].counts.delivered == 1_000 - 142;
    world.live_until(patient, plan, new_one).await;
    // The waiting key's own 143 records, and the new one.
    assert_eq!(world.log.read_count(world.input) - read, 144);
}

#[actix_rt::test]
async fn a_replay_whose_payload_has_gone_holds_nothing_back() {
    let mut world = World::new();
    world.append(keyed(21));
    let mut id = [0; 16];
    id[0] = b'7';
    let (id, key) = (
        MessageId(id),
        KeyHash(b"k0".iter().fold(17, |h, b| h * 31 + u64::from(*b))),
    );
    let kept = crate::core::ledger::entry::Kept {
        key,
        record_key: None,
        timestamp: Time(1),
        value: "7".into(),
        headers: crate::core::record::Headers::none(),
        readable: "7".into(),
        idempotency_key: "7".into(),
        reason: String::new(),
        answer: String::new(),
        first_try: Time(1),
        dropped: false,
    };
    let dead = outcome(7, 422, OutcomeKind::Dead(Box::new(kept)));
    world.wrote(Body::Outcome(dead));
    let opened = crate::core::ledger::entry::Opened {
        at: AT,
        id,
        round: 2,
        when: Time(1),
        idempotency_key: "7-2".into(),
    };
    world.wrote(Body::Opened(opened));
    world.gone = Some(7);
    let held = world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(
        (world.partner.lock().seen.len(), world.position(), held),
        (20, 21, 0)
    );
}

/// An earlier life has delivered these records and no others.
fn delivered_before(world: &World, offsets: &[u64]) {
    for offset in offsets {
        let delivered = OutcomeKind::Delivered {
            readable: Default::default(),
        };
        let outcome = outcome(*offset, 200, delivered);
        world.wrote(Body::Outcome(outcome));
    }
}

#[actix_rt::test]
async fn what_an_earlier_life_finished_at_the_end_of_the_topic_is_not_waited_for() {
    let mut world = World::new();
    world.append(keyed(8));
    delivered_before(&world, &[5, 6, 7]);
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(world.partner.lock().seen.len(), 5);
    assert_eq!(world.position(), 8);
}

#[actix_rt::test]
async fn gaps_between_finished_ranges_are_filled_although_the_ranges_are_at_their_bound() {
    let mut world = World::new();
    world.append(keyed(12));
    world.ranges = 3;
    delivered_before(&world, &[1, 3, 5, 7, 9]);
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(world.partner.lock().seen.len(), 7);
    assert_eq!(world.position(), 12);
}

/// A message has two records under two keys. The first was left behind its key, so that the second one was tried and
/// waits; a restart takes the first one up, and the second one is its duplicate. Another restart loses nothing of that.
#[actix_rt::test]
async fn a_message_that_goes_on_by_another_record_of_it_is_not_lost() {
    let mut world = World::new();
    // Nothing is copied into the ledger meanwhile.
    world.waiting_after = Duration::from_secs(36_000);
    let slow = |n: u64| (Some("slow".to_owned()), n);
    let patient = patient();
    world.append([slow(0)]);
    let waits = |number: u64, offset: Offset| {
        move |state: &LaneState| {
            let of = |p: &crate::core::ledger::fold::PartitionState| p.messages.get(&id_of(number));
            let message = state.partitions.get(&AT).and_then(of);
            message.is_some_and(|m| m.offset == offset && matches!(m.state, MessageState::Later { .. }))
        }
    };
    let living = world.begin(patient.clone(), |n, _| match n {
        100 => Reply::Take,
        _ => Reply::TryLater,
    });
    living.until(|l| waits(0, 0)(&l.memory.state.lock())).await;
    living
        .until(|l| l.route.figures.waiting.load(Ordering::Relaxed) == 1)
        .await;
    // More behind the slow key than is queued behind it, and the message once more under another one.
    world.append(
        (1..=40)
            .map(slow)
            .chain([slow(77), (Some("other".to_owned()), 77)]),
    );
    living.until(|l| waits(77, 42)(&l.memory.state.lock())).await;
    living.stop().await;
    // The slow key goes on, and waits once more before the message's turn comes.
    world.make_due(crate::core::message_id::key_hash(b"slow"));
    let plan = |n, _| match n {
        5 => Reply::TryLater,
        _ => Reply::Take,
    };
    let duplicate = |state: &LaneState| state.partitions[&AT].is_finished(42) && waits(5, 5)(state);
    let living = world.begin(patient, plan);
    // Nothing goes before all is read: the key does not wait yet, and the first record of the message is queued.
    living.pause(true);
    living
        .until(|l| l.route.figures.read.load(Ordering::Relaxed) == 43)
        .await;
    living.pause(false);
    living.until(|l| duplicate(&l.memory.state.lock())).await;
    living.stop().await;
    assert_eq!(requests(&world, 77), 1);
    world.make_due(crate::core::message_id::key_hash(b"slow"));
    world.live(partner(), |_, _| Reply::Take).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    let taken = seen.iter().filter(|s| s.1 == 77 && s.2 == Reply::Take).count();
    assert_eq!((taken, world.position()), (1, 43));
    assert_eq!(world.memory.state.lock().partitions[&AT].counts.skipped, 0);
}

/// A route that the ledger knows stands where its records left the topic, until an operator lets it go on; one that is
/// new begins where the topic does.
#[actix::test]
async fn lost_records_stop_a_route_that_was_there_before() {
    let mut world = World::new();
    world.append((0..10).map(|n| (None, n)));
    let living = world.begin(
        partner(),
        |n, _| if n == 3 { Reply::TryLater } else { Reply::Take },
    );
    living
        .until(|l| {
            l.memory
                .state
                .lock()
                .partitions
                .get(&AT)
                .is_some_and(|p| p.counts.delivered == 9)
        })
        .await;
    living.stop().await;
    assert_eq!(world.position(), 3);
    world.append((10..20).map(|n| (None, n)));
    world.log.trim(world.input, 13).expect("trimmed");
    for life in 0..2 {
        let living = world.begin(partner(), |_, _| Reply::Take);
        living.until(|l| !l.memory.state.lock().stopped.is_empty()).await;
        let reason = living.memory.state.lock().stopped[&AT.route].reason.clone();
        assert!(
            reason.starts_with("lost: records 3 to 12 of partition 0 left the topic"),
            "{reason}"
        );
        assert!(
            !living.is_idle().await,
            "a drain does not end before somebody has decided"
        );
        if life == 1 {
            let resume = Action::Resume {
                partner: String::new(),
                route: Some(AT.route),
            };
            assert!(living.command(resume).await);
            living.idle().await;
        }
        living.stop().await;
    }
    assert_eq!(
        (
            world.position(),
            world.partner.lock().seen.iter().filter(|s| s.1 >= 10).count()
        ),
        (20, 7)
    );
    {
        let state = world.memory.state.lock();
        let left = state.partitions[&AT].messages.get(&id_of(3)).expect("it is kept");
        assert_eq!(
            (&left.state, left.dropped, state.stopped.len()),
            (&MessageState::Dead, true, 0),
            "what was tried is listed"
        );
    }
    // A third life finds nothing to ask.
    world.live(partner(), |_, _| Reply::Take).await;
    let mut world = World::new();
    world.fresh = true;
    world.append((0..10).map(|n| (None, n)));
    world.log.trim(world.input, 5).expect("trimmed");
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!((world.position(), world.partner.lock().seen.len()), (10, 5));
    assert!(world.memory.state.lock().stopped.is_empty());
}

/// What an earlier life tried ends where its record is no longer taken, or is another message now: a drain ends, and
/// the message says why.
#[actix::test]
async fn what_is_left_of_records_that_changed_ends() {
    for changed in [Changed::Filtered, Changed::OtherId] {
        let mut world = World::new();
        world.append((0..3).map(|n| (None, n)));
        let waits = |state: &LaneState| {
            let later = |m: &Message| matches!(m.state, MessageState::Later { .. });
            state
                .partitions
                .get(&AT)
                .is_some_and(|p| p.messages.values().filter(later).count() == 3)
        };
        world.live_until(partner(), |_, _| Reply::TryLater, waits).await;
        assert!(waits(&world.memory.state.lock()));
        world.changed = changed;
        world.live(partner(), |_, _| Reply::Take).await;
        let sent = world
            .partner
            .lock()
            .seen
            .iter()
            .filter(|s| s.2 == Reply::Take)
            .count();
        assert_eq!(sent, if changed == Changed::OtherId { 3 } else { 0 });
        assert_eq!(world.position(), 3);
        let state = world.memory.state.lock();
        for n in 0..3 {
            assert_eq!(
                state.partitions[&AT]
                    .messages
                    .get(&id_of(n))
                    .expect("it is kept")
                    .state,
                MessageState::Skipped,
                "{n}"
            );
        }
    }
}
