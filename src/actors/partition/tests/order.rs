//! Each record once, in the order of its key, and nobody behind anybody else (I4, I8).

use super::*;

/// A partner that closes each connection: a start is prepared as long ahead as its connect takes, and nearly every slot is
/// met. Prepared no longer ahead than a commit takes, each slot is over before there is a connection.
#[actix::test]
async fn a_partner_that_closes_its_connections_has_its_slots_met() {
    let mut world = World::new();
    world.limit = Some(LimitConfig {
        rates: vec![Rate::Sliding {
            count: 100,
            window: Duration::from_secs(1),
        }],
        burst: Some(1),
        ..LimitConfig::default()
    });
    world.connect_takes = Duration::from_millis(50);
    world.append((0..60).map(|n| (Some(format!("k{n}")), n)));
    world.live(partner(), |_, _| Reply::Take).await;
    let connects = world.connects.load(Ordering::Relaxed);
    assert_eq!(world.memory.state.lock().partitions[&AT].counts.delivered, 60);
    assert!(connects < 3 * 60, "{connects} connects for 60 messages");
}

/// The thread stands still right before a request is written, as on a busy machine or where a processor quota is used up: the
/// request counts when it was written, and no second sees more than are allowed (I5).
#[actix::test]
async fn a_start_that_is_written_late_counts_when_it_was() {
    let mut world = World::new();
    world.limit = Some(LimitConfig {
        rates: vec![Rate::Sliding {
            count: 5,
            window: Duration::from_secs(1),
        }],
        ..LimitConfig::default()
    });
    world.append((0..15).map(|n| (Some(format!("k{n}")), n)));
    let seen = world.partner.clone();
    let fifth = move |_, _| match seen.lock().seen.len() {
        4 => Reply::Frozen(300),
        _ => Reply::Take,
    };
    world.live(partner(), fifth).await;
    let came = &world.partner.lock().came;
    assert_eq!(came.len(), 15);
    for six in came.windows(6) {
        let took = six[5] - six[0];
        assert!(took >= Duration::from_secs(1), "6 of 5 in {took:?}: {came:?}");
    }
}

/// A doubt is settled soon, although hundreds of messages wait for the partner's limit: its look-up takes turns with
/// them at the gate, and does not wait for their room there.
#[actix_rt::test]
async fn a_look_up_does_not_wait_behind_a_backlog() {
    let mut world = World::new();
    world.limit = Some(LimitConfig {
        rates: vec![Rate::Sliding {
            count: 200,
            window: Duration::from_secs(1),
        }],
        burst: Some(1),
        ..LimitConfig::default()
    });
    world.append((0..300).map(|n| (Some(format!("k{n}")), n)));
    let mut config = partner();
    config.timeout.request = Duration::from_millis(10);
    config.doubt.timeout = crate::config::model::DoubtPolicy::Verify;
    let mut verify =
        crate::config::model::VerifyConfig::new("http://127.0.0.1/", "true", "true", config.timeout.request);
    verify.settle = Duration::from_millis(10);
    config.verify = Some(verify);
    let doubtful = |number, _| if number == 3 { Reply::Silence } else { Reply::Take };
    world.live(config, doubtful).await;
    let partner = world.partner.lock();
    assert_eq!(partner.asked.len(), 1);
    let (_, seen) = partner.asked[0];
    assert!(seen < 60, "looked up after {seen} of 300 requests");
}

#[actix_rt::test]
async fn each_record_is_delivered_once_in_the_order_of_its_key() {
    let mut world = World::new();
    world.append(keyed(500));
    let held = world.live(partner(), |_, _| Reply::Take).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    assert_eq!(seen.len(), 500);
    assert_order(&seen);
    assert_eq!((world.position(), held), (500, 0));
    // Another life, and the same records again: nothing is sent.
    world.append(keyed(500));
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(world.partner.lock().seen, []);
    assert_eq!(world.position(), 1_000, "duplicates finish their offsets");
}

/// Few messages stand at the gate, but all places are taken: as many keys are in flight as there are.
#[actix_rt::test]
async fn who_gets_a_slot_makes_room_at_the_gate_for_the_next() {
    let mut world = World::new();
    let keys = 15;
    world.append((0..keys).map(|i| (Some(format!("k{i}")), i)));
    world
        .live(partner(), move |_, _| Reply::TakeAt(keys as usize))
        .await;
    assert_eq!(world.partner.lock().seen.len(), keys as usize);
}

/// Whose an answer is may be known a little later: its place at the partner is free meanwhile, its key is not (I4), and
/// what it turns out to be is what counts.
#[actix_rt::test]
async fn an_answer_that_settles_later_holds_its_key_and_no_place() {
    let mut world = World::new();
    world.append((0..10).map(|i| (Some(format!("k{}", i % 5)), i)));
    let mut config = partner();
    config.concurrency = 1;
    let reply = |number, _| {
        if number == 0 {
            Reply::DoubtAt(9)
        } else {
            Reply::Take
        }
    };
    world.live(config, reply).await;
    let seen = std::mem::take(&mut world.partner.lock().seen);
    let last = seen.last().map(|(_, number, _)| *number);
    assert_eq!((seen.len(), last), (10, Some(5)), "{seen:?}");
    assert_order(&seen);
    let state = world.memory.state.lock();
    assert_eq!(state.partitions[&AT].counts.parked, 1);
}

#[actix_rt::test]
async fn a_retry_keeps_the_order_of_its_key_and_blocks_no_other() {
    let mut world = World::new();
    world.append(keyed(70));
    world
        .live(partner(), |n, attempt| match (n, attempt) {
            (3, 1..=4) => Reply::TryLater,
            (10, _) => Reply::Refuse,
            _ => Reply::Take,
        })
        .await;
    let seen = &world.partner.lock().seen;
    assert_order(seen);
    assert_eq!(seen.iter().filter(|s| s.1 == 3).count(), 5);
    assert_eq!(seen.len(), 74);
    let state = world.memory.state.lock();
    let counts = state.partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead), (69, 1));
    assert_eq!(state.partitions[&AT].position, 70);
}

/// A look-up that waits for the disk holds nobody back on its arbiter; and what is finished after it was answered, and
/// before the answer is there, is not sent again.
#[actix_rt::test]
async fn a_slow_look_up_holds_nobody_back_and_misses_nothing() {
    use std::sync::atomic::AtomicBool;
    let mut world = World::new();
    let takes = Arc::new(AtomicBool::new(false));
    let plan = takes.clone();
    world.append([(None, 1)]);
    let living = world.begin(partner(), move |_, _| match plan.load(Ordering::Relaxed) {
        true => Reply::Take,
        false => Reply::TryLater,
    });
    let seen = world.partner.clone();
    living.until(|_| !seen.lock().seen.is_empty()).await;
    // The same message comes by once more; it is in flight, and the memory does not know it.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (began, stood) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (tell, timed_out) = (began.clone(), stood.clone());
    let slow = Box::new(move || {
        tell.store(true, Ordering::Release);
        timed_out.store(wait.recv_timeout(patience::LIMIT / 2).is_err(), Ordering::Release);
    });
    *living.memory.slow.lock() = Some((|_| true, slow));
    world.append([(None, 1)]);
    living.until(|_| began.load(Ordering::Acquire)).await;
    // It is delivered and folded while the look-up still waits, and an order has the actor forget what is folded.
    takes.store(true, Ordering::Relaxed);
    living
        .until(|l| l.memory.finished.lock().contains_key(&id_of(1)))
        .await;
    assert!(
        living
            .command(Action::Mark {
                at: AT,
                id: id_of(99),
                offset: 0,
            })
            .await
    );
    let sent = seen.lock().seen.len();
    go.send(()).expect("the look-up waits");
    living.idle().await;
    assert_eq!(seen.lock().seen.len(), sent, "it is not sent again");
    assert!(
        !stood.load(Ordering::Acquire),
        "the look-up held the arbiter back"
    );
    living.stop().await;
    assert_eq!(world.position(), 2);
}

#[actix_rt::test]
async fn records_without_key_and_duplicates_in_flight() {
    let mut world = World::new();
    world.append((0..50).flat_map(|n| [(None, n), (None, n)]));
    world.live(partner(), |_, _| Reply::Take).await;
    assert_eq!(world.partner.lock().seen.len(), 50);
    assert_eq!(world.position(), 100);
}

#[actix_rt::test]
async fn records_that_are_no_messages_stop_the_route_after_so_many() {
    let mut world = World::new();
    world.append((0..200).map(|n| (None, INVALID + n)));
    world.append(keyed(10));
    let mut config = partner();
    config.flood.dead_in_a_row = 50;
    let stopped = |state: &LaneState| state.stopped.contains_key(&AT.route);
    world
        .live_until(config.clone(), |_, _| Reply::Take, stopped)
        .await;
    let dead = |world: &World| world.memory.state.lock().partitions[&AT].counts.dead;
    assert_eq!(dead(&world), 50);
    assert!(world.position() <= 50 && world.partner.lock().seen.is_empty());
    // An operator who has no guard lets the rest go: each record once.
    config.flood.dead_in_a_row = 0;
    world.live(config, |_, _| Reply::Take).await;
    assert_eq!((dead(&world), world.position()), (200, 210));
    assert_eq!(world.partner.lock().seen.len(), 10);
}

#[test]
fn after_is_small() {
    assert!(size_of::<attempt::After>() <= 16);
}
