//! What stays behind a stuck key, and kept messages that fill the memory (I6).

use super::*;

/// Share of memory; what becomes of the first message of the slow key; whether that holds the key; finished ranges.
const STUCK: [(u64, Reply, OnDoubt, usize); 5] = [
    (1 << 20, Reply::TryLater, OnDoubt::Continue, 20_000),
    (1 << 20, Reply::Silence, OnDoubt::Hold, 20_000),
    // 16 MiB over 501 partners: not even one chunk.
    (33 << 10, Reply::TryLater, OnDoubt::Continue, 20_000),
    (33 << 10, Reply::Silence, OnDoubt::Hold, 20_000),
    // More gaps than the position may have above it: what is left goes into the ledger.
    (1 << 20, Reply::TryLater, OnDoubt::Continue, 500),
];

/// Ten thousand records behind one key that waits or is held: all others of its partition are delivered, and a restart
/// delivers what stood behind it, in order.
#[actix_rt::test]
async fn a_stuck_key_does_not_starve_the_others_of_its_partner() {
    for (share, reply, on_doubt, ranges) in STUCK {
        let mut world = World::new();
        world.share = share;
        world.ranges = ranges;
        // A backoff with jitter may be shorter than what counts as long.
        world.waiting_after = Duration::from_millis(100);
        world.append(every_other_slow(20_000));
        let mut patient = patient();
        patient.on_doubt = on_doubt;
        let plan = move |n, _| match n {
            0 => reply,
            _ => Reply::Take,
        };
        let others = |state: &LaneState| {
            state
                .partitions
                .get(&AT)
                .is_some_and(|p| p.counts.delivered == 10_000)
        };
        let held = world.live_until(patient, plan, others).await;
        let seen = std::mem::take(&mut world.partner.lock().seen);
        assert_eq!(seen.len(), 10_001, "share {share}, {reply:?}");
        assert_order(&seen);
        assert!(held <= share.max(100 << 10), "{held} bytes of {share}");
        // The doubt is not held in the next life, and the retry is due.
        world.make_due(crate::core::message_id::key_hash(b"slow"));
        world.live(partner(), |_, _| Reply::Take).await;
        let seen = std::mem::take(&mut world.partner.lock().seen);
        let first = u64::from(on_doubt == OnDoubt::Hold) * 2;
        assert_eq!(
            seen.iter().map(|s| s.1).collect::<Vec<_>>(),
            (first..20_000).step_by(2).collect::<Vec<_>>()
        );
        assert_eq!(world.position(), 20_000);
    }
}

/// A key that goes on has what was left of it read back, in order, and each message once.
#[actix_rt::test]
async fn what_was_left_behind_a_key_goes_on_with_it() {
    for share in [64 << 20, 33 << 10] {
        let mut world = World::new();
        world.share = share;
        world.ranges = 20_000;
        world.append(every_other_slow(6_000));
        // The same messages once more: duplicates of what is left are sent once, too.
        world.append(every_other_slow(6_000));
        let mut config = partner();
        config.retry.first = Duration::from_millis(300);
        config.retry.longest = Duration::from_millis(300);
        let held = world
            .live(config, |n, attempt| match (n, attempt) {
                (0, 1..=3) | (2_000, 1..=2) => Reply::TryLater,
                _ => Reply::Take,
            })
            .await;
        let seen = std::mem::take(&mut world.partner.lock().seen);
        assert_order(&seen);
        let taken = seen.iter().filter(|s| s.2 == Reply::Take).count();
        assert_eq!((taken, world.position(), held), (6_000, 12_000, 0));
    }
}

/// What was left behind a key is looked up away from the arbiter, when it is read back and when it is copied: a look-up
/// that waits for the disk holds nobody back, and what is called delivered meanwhile is not sent.
#[actix_rt::test]
async fn a_slow_look_up_of_what_was_left_holds_nobody_back() {
    use std::sync::atomic::AtomicBool;
    for copied in [false, true] {
        let mut world = World::new();
        world.share = 33 << 10;
        if copied {
            // More gaps than the position may have above it: what is left goes into the ledger.
            world.ranges = 20;
            world.waiting_after = Duration::from_millis(100);
        } else {
            world.ranges = 5_000;
        }
        world.append(every_other_slow(1_000));
        let mut config = partner();
        let wait = if copied { 3_600_000 } else { 300 };
        config.retry.first = Duration::from_millis(wait);
        config.retry.longest = Duration::from_millis(wait);
        let (began, stood) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (go, waits) = std::sync::mpsc::channel::<()>();
        let (tell, timed_out) = (began.clone(), stood.clone());
        *world.memory.slow.lock() = Some((
            all_slow,
            Box::new(move || {
                tell.store(true, Ordering::Release);
                let waited = waits.recv_timeout(patience::LIMIT / 2);
                timed_out.store(waited.is_err(), Ordering::Release);
            }),
        ));
        // The backoff has jitter: as many attempts as it takes until much is left.
        let plan = move |n, attempt| match (n, copied) {
            (0, true) => Reply::TryLater,
            (0, false) if attempt < 8 => Reply::TryLater,
            _ => Reply::Take,
        };
        let living = world.begin(config, plan);
        living.until(|_| began.load(Ordering::Acquire)).await;
        let (before, last) = (living.delivered(), id_of(998));
        let mark = Action::Mark {
            at: AT,
            id: last,
            offset: 998,
        };
        assert!(living.command(mark).await);
        world.append([(Some("new".to_owned()), 5_001)]);
        if !copied {
            living.until(|l| l.delivered() > before).await;
        }
        go.send(()).expect("the look-up waits");
        let all = if copied { 501 } else { 1_000 };
        living.until(|l| l.delivered() == all).await;
        assert!(
            !stood.load(Ordering::Acquire),
            "the look-up held the arbiter back"
        );
        living.stop().await;
        let seen = world.partner.lock();
        assert_order(&seen.seen);
        assert!(seen.seen.iter().all(|s| s.1 != 998), "it was called delivered");
    }
}

/// Thousands of messages that the partner wants in an hour, one by one, rest in the ledger and starve nobody; a restart
/// lets them rest on, at some bytes each, and sends them when they are due.
#[actix_rt::test]
async fn messages_that_wait_one_by_one_rest_in_the_ledger() {
    for keyed in [false, true] {
        let mut world = World::new();
        (world.share, world.shares, world.ranges) = (256 << 10, 32, 20_000);
        world.long = true;
        world.append(every_other_waits(8_000, keyed));
        let plan = |n, _| match n % 2 {
            0 => Reply::Wait(Some(Concerns::Message)),
            _ => Reply::Take,
        };
        let living = world.begin(partner(), plan);
        living.until(|l| l.delivered() == 4_000).await;
        // Each of the others was tried, once: what was not is not held in memory either.
        living
            .until(|l| l.route.partner.sink.partner.lock().seen.len() == 8_000)
            .await;
        let memory = living.route.partner.memory.clone();
        // All but what there is room for.
        living.until(|_| memory.held() <= 140 << 10).await;
        let rested = memory.books().ledger();
        // The waits have jitter: times of their own for many of them.
        assert!(rested > 3_500 * 20 && rested < 4_000 * 100, "{rested} bytes");
        let held = living.stop().await;
        assert!(held <= 140 << 10, "{held} bytes");
        assert_eq!(memory.books().ledger(), 0, "given back");
        assert_eq!(world.partner.lock().seen.len(), 8_000);

        // What is in the ledger rests from the beginning.
        let living = world.begin(partner(), plan);
        let memory = living.route.partner.memory.clone();
        living.until(|_| memory.books().ledger() > 3_500 * 20).await;
        living.stop().await;
        let waiting: Vec<_> = {
            let state = world.memory.state.lock();
            state.partitions[&AT].messages.unsettled().collect()
        };
        assert_eq!(waiting.len(), 4_000);
        world.make_due_where(|_| true);
        world.partner.lock().seen.clear();
        world.live(partner(), |_, _| Reply::Take).await;
        let mut sent: Vec<_> = world.partner.lock().seen.iter().map(|s| s.1).collect();
        sent.sort_unstable();
        assert_eq!(sent, (0..8_000).step_by(2).collect::<Vec<_>>());
        assert_eq!(world.position(), 8_000);
    }
}

/// What rests is woken when it is due, and what came behind it on its key follows it; a second record of it is a
/// duplicate, also while it rests.
#[actix_rt::test]
async fn what_rests_is_woken_in_time_and_its_key_follows() {
    let mut world = World::new();
    (world.share, world.ranges) = (64 << 10, 20_000);
    world.rest_after = Duration::from_millis(100);
    // Each key twice, the second record behind all first ones; and all of it once more.
    let records = || (0..2_000u64).map(|i| ((i % 4 != 0).then(|| format!("k{}", i % 1_000)), i));
    world.append(records().chain(records()));
    let mut config = partner();
    config.retry.first = Duration::from_millis(3_000);
    config.retry.longest = Duration::from_millis(3_000);
    let plan = |n, attempt| match (n, attempt) {
        (0..1_000, 1) => Reply::TryLater,
        _ => Reply::Take,
    };
    let living = world.begin(config, plan);
    let memory = living.route.partner.memory.clone();
    living.until(|_| memory.books().ledger() > 100 * 20).await;
    living.idle().await;
    assert_eq!((living.stop().await, memory.books().ledger()), (0, 0));
    let seen = world.partner.lock();
    let keyed: Vec<_> = seen.seen.iter().filter(|s| !s.0.is_empty()).cloned().collect();
    assert_order(&keyed);
    assert_eq!(seen.seen.iter().filter(|s| s.2 == Reply::Take).count(), 2_000);
    drop(seen);
    assert_eq!(world.position(), 4_000);
}

/// An earlier life with more memory has tried thousands of messages whose records are still in the topic: what is known of
/// them may be more than the share, and they are read all the same.
#[actix_rt::test]
async fn what_a_larger_share_left_keeps_a_smaller_one_from_nothing() {
    let mut world = World::new();
    (world.share, world.ranges) = (64 << 10, 5_000);
    world.append(apart(2_000));
    let first_try = Clock::start().now();
    for offset in 0..2_000 {
        let key = crate::core::message_id::key_hash(format!("k{offset}").as_bytes());
        world.wrote(Body::Outcome(outcome(
            offset,
            429,
            later(key, first_try, Time(3)),
        )));
    }
    let life = world.live(partner(), |_, _| Reply::Take);
    assert_eq!(patience::within(life).await, 0);
    assert_eq!(world.partner.lock().seen.len(), 2_000);
    assert_eq!(world.position(), 2_000);
}

/// What waits in the ledger behind one key is left there by a restart, and goes in order from there.
#[actix_rt::test]
async fn a_restart_leaves_in_the_ledger_what_waits_there_behind_a_key() {
    let mut world = World::new();
    world.share = 64 << 10;
    let key = crate::core::message_id::key_hash(b"slow");
    world.append((0..500).map(|n| (Some("slow".to_owned()), n)));
    for offset in 0..500u64 {
        let text = offset.to_string();
        let mut id = [0; 16];
        id[..text.len()].copy_from_slice(text.as_bytes());
        let kept = crate::core::ledger::entry::Kept {
            key,
            record_key: Some("slow".into()),
            timestamp: Time(1),
            value: text.clone().into(),
            headers: crate::core::record::Headers::none(),
            readable: text,
            idempotency_key: String::new(),
            reason: String::new(),
            answer: String::new(),
            first_try: Time::ZERO,
            dropped: false,
        };
        let waiting = crate::core::ledger::entry::Waiting {
            at: AT,
            id: MessageId(id),
            offset,
            round: 1,
            attempts: 0,
            when: Time(1),
            not_before: Time(2),
            kept: Box::new(kept),
        };
        world.wrote(Body::Waiting(waiting));
    }
    assert_eq!(world.position(), 500);
    let held = world.live(partner(), |_, _| Reply::Take).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    assert_eq!(
        seen.iter().map(|s| s.1).collect::<Vec<_>>(),
        (0..500).collect::<Vec<_>>()
    );
    assert_eq!(held, 0);
}

/// A rule against a flooding key: once kept messages have filled half of the memory, what it passes over is remembered
/// by its ID, costs no row of the fold, and is not sent by a second import either.
#[actix::test]
async fn a_flood_that_a_rule_skips_is_remembered_without_being_kept() {
    for full in [false, true] {
        let mut world = World::new();
        let living = world.begin(partner(), |_, _| Reply::Take);
        if full {
            let memory = &living.route.partner.memory;
            memory.set_kept(48 << 20);
            memory.books().set(48 << 20, 48 << 20, 0);
        }
        let rule = SkipRule {
            rule: 1,
            topic: "t".into(),
            partner: None,
            matches: SkipMatch::Key("hot".into()),
            reason: "flood".into(),
            made: Time(1),
            expires: None,
        };
        assert!(living.command(Action::SkipAdd(rule)).await);
        let flood = || (0..200).map(|n| (Some("hot".to_owned()), n));
        world.append(flood());
        world.append(flood());
        living.idle().await;
        living.stop().await;
        assert_eq!(world.partner.lock().seen, []);
        assert_eq!(world.position(), 400);
        let state = world.memory.state.lock();
        let partition = &state.partitions[&AT];
        let kept = if full { 0 } else { 200 };
        assert_eq!((partition.counts.skipped, partition.messages.len()), (200, kept));
        let finished = world.memory.finished.lock();
        assert_eq!(
            finished
                .values()
                .filter(|s| **s == FinishedState::Skipped)
                .count(),
            200
        );
    }
}

/// A partner whose kept messages fill the memory takes nothing up, and goes on when some of them are gone.
#[actix::test]
async fn who_fills_the_memory_with_kept_messages_stands_until_some_are_gone() {
    let mut world = World::new();
    let living = world.begin(partner(), |_, _| Reply::Take);
    let memory = living.route.partner.memory.clone();
    memory.set_kept(62 << 20);
    memory.books().set(62 << 20, 62 << 20, 0);
    world.append(keyed(50));
    living.stands_for(Full::Kept).await;
    assert!(!living.is_idle().await);
    assert_eq!(world.partner.lock().seen, []);
    memory.set_kept(1 << 20);
    memory.books().set(1 << 20, 1 << 20, 0);
    living.idle().await;
    living.goes_on().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 50);
}

/// Where no more messages may rest, those that wait fill the share, and nothing more is taken up. The partition says why it
/// stands; so it does at the bound of finished ranges, and where its records cannot be looked up.
#[actix_rt::test]
async fn a_partition_that_stands_says_why() {
    // Waits that are copied into the ledger make no gaps.
    for (full, wait) in [(Full::Memory, 3_600), (Full::Ranges, 300)] {
        let mut world = World::new();
        let mut patient = partner();
        patient.retry.first = Duration::from_secs(wait);
        patient.retry.longest = patient.retry.first;
        match full {
            Full::Memory => world.share = 200 << 10,
            _ => world.ranges = 50,
        }
        world.append(every_other_waits(20_000, false));
        let living = world.begin(patient, |n, _| match n % 2 {
            0 => Reply::TryLater,
            _ => Reply::Take,
        });
        if full == Full::Memory {
            // As much is at rest as may be.
            living.route.partner.memory.rest(0, 50 << 10);
        }
        living.stands_for(full).await;
        living.stop().await;
    }
    let mut world = World::new();
    world.memory.refused.store(true, Ordering::Relaxed);
    world.append(keyed(5));
    let living = world.begin(partner(), |_, _| Reply::Take);
    living.stands_for(Full::Unreadable).await;
    world.memory.refused.store(false, Ordering::Relaxed);
    living.idle().await;
    living.goes_on().await;
    living.stop().await;
}
