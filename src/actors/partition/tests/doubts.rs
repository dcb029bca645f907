//! Attempts without a known outcome: parked, held, sent again; panics (I3).

use super::*;

#[actix_rt::test]
async fn silence_parks_and_holds_its_key_where_asked() {
    let mut world = World::new();
    world.append(keyed(21));
    let mut config = partner();
    config.on_doubt = OnDoubt::Continue;
    world
        .live(config, |n, _| if n == 7 { Reply::Silence } else { Reply::Take })
        .await;
    assert_eq!(world.partner.lock().seen.len(), 21);
    let state = world.memory.state.lock();
    let parked: Vec<_> = state.partitions[&AT]
        .messages
        .values()
        .filter(|m| m.state == MessageState::Parked)
        .collect();
    assert_eq!(parked.len(), 1);
    assert_eq!((parked[0].offset, parked[0].payload.is_some()), (7, true));
    assert_eq!(state.partitions[&AT].position, 21);
}

#[actix_rt::test]
async fn a_panic_of_a_keys_actor_loses_nothing_and_sends_nothing_twice() {
    let mut world = World::new();
    world.append(keyed(40));
    let before = std::sync::atomic::AtomicBool::new(true);
    world
        .live(partner(), move |n, _| match n {
            5 if before.swap(false, Ordering::Relaxed) => Reply::PanicBefore,
            12 => Reply::PanicAfter,
            _ => Reply::Take,
        })
        .await;
    let seen = world.partner.lock().seen.clone();
    assert_order(&seen);
    assert_eq!(seen.len(), 40, "each message was written once");
    let state = world.memory.state.lock();
    let counts = state.partitions[&AT].counts;
    // The one that may have been written is in doubt, and parked by the policy.
    assert_eq!((counts.delivered, counts.parked), (39, 1));
    assert_eq!(state.partitions[&AT].position, 40);
}

#[actix_rt::test]
async fn a_doubt_of_an_earlier_life_is_parked_before_its_key_goes_on() {
    let mut world = World::new();
    world.append(keyed(14));
    world.lives = 1;
    // An earlier life wrote the intent of record 2 and died.
    world.wrote(Body::Intent(intent(
        2,
        KeyHash(b"k2".iter().fold(17, |h, b| h * 31 + u64::from(*b))),
    )));
    world.live(partner(), |_, _| Reply::Take).await;
    let seen = world.partner.lock().seen.clone();
    assert_eq!(seen.len(), 13);
    assert!(
        seen.iter().all(|s| s.1 != 2),
        "what is in doubt is not sent again"
    );
    let state = world.memory.state.lock();
    let message = state.partitions[&AT]
        .messages
        .get(&MessageId(*b"2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"))
        .expect("it is parked");
    assert_eq!(
        (&message.state, message.payload.is_some()),
        (&MessageState::Parked, true)
    );
    assert_eq!(state.partitions[&AT].position, 14);
}

/// `on_doubt = "hold"`: orders about other messages of the key, dead ones, leave its doubt alone.
#[actix::test]
async fn a_hold_ends_with_its_own_message_only() {
    let mut config = partner();
    config.on_doubt = OnDoubt::Hold;
    config.doubt = crate::config::model::DoubtConfig::all(crate::config::DoubtPolicy::Park);
    let key = || Some("k".to_owned());
    for order in ["drop", "forget", "mark", "replay"] {
        let mut world = World::new();
        world.append([(key(), 3), (key(), 5), (key(), 6), (key(), 7)]);
        let living = world.begin(config.clone(), |n, _| match n {
            3 => Reply::Refuse,
            5 => Reply::Silence,
            _ => Reply::Take,
        });
        living
            .until(|l| {
                l.memory
                    .state
                    .lock()
                    .partitions
                    .get(&AT)
                    .is_some_and(|p| p.counts.parked == 1)
            })
            .await;
        // What the replay stands behind is queued: a later round goes at its own time, before what is not read yet.
        living
            .until(|l| l.route.figures.read.load(Ordering::Relaxed) == 4)
            .await;
        let id = id_of(3);
        let body = match order {
            "drop" => command(Action::Drop { at: AT, id }),
            "forget" => command(Action::Forget { at: AT, id }),
            "mark" => command(Action::Mark {
                at: AT,
                id,
                offset: 0,
            }),
            _ => Body::Opened(crate::core::ledger::entry::Opened {
                at: AT,
                id,
                round: 2,
                when: Time(1),
                idempotency_key: "again".into(),
            }),
        };
        assert!(living.order(body).await);
        tokio::time::sleep(Duration::from_millis(30)).await;
        let sent = |world: &World| world.partner.lock().seen.iter().map(|s| s.1).collect::<Vec<_>>();
        assert_eq!(sent(&world), [3, 5], "{order}: the doubt of 5 holds the key");
        assert!(living.command(mark(5)).await);
        living
            .until(|l| l.memory.state.lock().partitions[&AT].counts.delivered == 2)
            .await;
        living.stop().await;
        assert_eq!(&sent(&world)[2..4], [6, 7], "{order}");
    }
}

#[actix_rt::test]
async fn a_resend_of_which_no_request_can_be_made_is_parked_not_dead() {
    let mut world = World::new();
    world.append(keyed(7));
    world.no_request = |n, attempt| n == 3 && attempt == 2;
    let mut config = partner();
    config.doubt = crate::config::model::DoubtConfig::all(crate::config::model::DoubtPolicy::Resend);
    config.timeout.request = Duration::from_millis(1);
    world
        .live(config, |n, _| if n == 3 { Reply::Silence } else { Reply::Take })
        .await;
    let counts = world.memory.state.lock().partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead, counts.parked), (6, 0, 1));
}

/// The partition's actor failed and was built again in the same life: what was being settled keeps its cause.
#[actix_rt::test]
async fn a_doubt_of_this_life_keeps_its_cause_when_the_partition_is_built_again() {
    use crate::config::model::{DoubtConfig, DoubtPolicy, VerifyConfig};
    for (settling, delivered) in [(Some(DoubtCause::Timeout), 7), (None, 6)] {
        let mut world = World::new();
        world.append(keyed(7));
        world.wrote(Body::Intent(Intent {
            timeout_ms: 1,
            ..intent(2, KeyHash(b"k2".iter().fold(17, |h, b| h * 31 + u64::from(*b))))
        }));
        world.settling = settling.map(|cause| (id_of(2), cause)).into_iter().collect();
        let mut config = partner();
        config.doubt = DoubtConfig {
            timeout: DoubtPolicy::Verify,
            ..DoubtConfig::all(DoubtPolicy::Park)
        };
        let second = Duration::from_secs(1);
        let mut verify = VerifyConfig::new("http://127.0.0.1/", "status == 200", "status == 404", second);
        verify.settle = Duration::ZERO;
        config.verify = Some(verify);
        world.live(config, |_, _| Reply::Take).await;
        let counts = world.memory.state.lock().partitions[&AT].counts;
        assert_eq!(
            (counts.delivered, counts.parked),
            (delivered, 7 - delivered),
            "{settling:?}"
        );
    }
}

/// A doubt whose record has left the topic ends parked: it is listed, and cannot be sent.
#[actix::test]
async fn a_doubt_whose_record_is_gone_is_parked() {
    let mut world = World::new();
    world.append([(None, 0), (None, 1)]);
    world.wrote(Body::Intent(Intent {
        life: LifeId(99),
        lease_ms: 1,
        timeout_ms: 1,
        ..intent(0, KeyHash(1))
    }));
    world.log.trim(world.input, 1).expect("trimmed");
    world.fresh = true;
    let parked = |state: &LaneState| state.partitions[&AT].counts.parked == 1;
    world.live_until(partner(), |_, _| Reply::Take, parked).await;
    assert!(
        world.memory.state.lock().partitions[&AT]
            .messages
            .get(&id_of(0))
            .is_some_and(|m| m.dropped)
    );
}
