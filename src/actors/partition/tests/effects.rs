//! Operators' orders, on messages that wait, stand at the gate or are on the wire.

use super::*;

/// What operators' orders promise about messages that stand at the gate already: after the answer none of them is
/// sent, whatever the order was.
#[actix::test]
async fn an_order_reaches_what_stands_at_the_gate() {
    for what in ["mark", "skip a key", "skip an ID"] {
        let mut world = World::new();
        world.append((0..40).map(|n| (Some(format!("k{}", n % 20)), n)));
        let living = world.begin(partner(), |_, _| Reply::Take);
        living.pause(true);
        living.until(|l| l.route.partner.gate.waiting() == 4).await;
        let of = |n: u64| match what {
            "mark" => mark(n),
            _ => Action::SkipAdd(SkipRule {
                rule: n + 1,
                topic: "t".into(),
                partner: None,
                matches: match what {
                    "skip a key" => SkipMatch::Key(format!("k{n}").into_bytes().into()),
                    _ => SkipMatch::Id(id_of(n).to_string().into_bytes().into()),
                },
                reason: "flood".into(),
                made: Time(1),
                expires: None,
            }),
        };
        for n in 0..10 {
            assert!(living.command(of(n)).await, "{what} {n}");
        }
        living.pause(false);
        living.idle().await;
        let left = living.route.orders.bar_of(&id_of(0));
        assert_eq!(left, None, "{what}: a mark is spent with its record");
        living.stop().await;
        let mut sent: Vec<_> = world.partner.lock().seen.iter().map(|s| s.1).collect();
        sent.sort_unstable();
        let all = (0..40).filter(|n| {
            if what == "skip a key" {
                n % 20 >= 10
            } else {
                *n >= 10
            }
        });
        assert_eq!(sent, all.collect::<Vec<_>>(), "{what}");
        assert_eq!(world.position(), 40, "{what}");
    }
}

/// A mark that met its record, or came too late for it, does not swallow a later record of the same ID.
#[actix::test]
async fn a_stale_mark_swallows_nothing() {
    let mut world = World::new();
    world.append([(None, 0), (None, 1)]);
    let living = world.begin(partner(), |_, _| Reply::Take);
    living.pause(true);
    living.until(|l| l.route.partner.gate.waiting() == 2).await;
    assert!(living.command(mark(0)).await);
    living.pause(false);
    living.idle().await;
    assert!(living.command(forget(0)).await);
    world.append([(None, 0)]);
    living.idle().await;
    assert_eq!(
        world.partner.lock().seen.len(),
        2,
        "1, and 0 once it was forgotten"
    );
    // Delivered, and marked only then.
    assert!(living.command(mark(0)).await);
    assert!(living.command(forget(0)).await);
    world.append([(None, 0)]);
    living.idle().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 3);
    assert_eq!(world.position(), 4);
}

/// An order about a message whose attempt has begun is refused, never answered "delivered" and then sent.
#[actix::test]
async fn a_mark_that_comes_too_late_is_refused() {
    let mut world = World::new();
    world.append([(None, 0)]);
    let living = world.begin(partner(), |_, _| Reply::TakeAt(2));
    living.until(|l| !l.route.on_wire.borrow().is_empty()).await;
    assert!(!living.command(mark(0)).await, "it is on the wire");
    world.append([(None, 1)]);
    living.idle().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 2);
    // One that waits for its next attempt: the entry is written, and the fold refuses it.
    world.append([(None, 2)]);
    let living = world.begin(
        partner(),
        |_, attempt| if attempt < 3 { Reply::TryLater } else { Reply::Take },
    );
    living
        .until(|l| !l.memory.state.lock().partitions[&AT].messages.is_empty())
        .await;
    if living.command(mark(2)).await {
        assert!(!living.memory.state.lock().partitions[&AT].messages.is_empty());
    }
    living.idle().await;
    assert_eq!(living.route.orders.bar_of(&id_of(2)), None);
    living.stop().await;
    let state = world.memory.state.lock();
    assert_eq!(
        (
            state.partitions[&AT].counts.delivered,
            state.partitions[&AT].counts.marked
        ),
        (3, 0)
    );
}

/// A message that was forgotten begins a later round, under another Idempotency-Key, live and after a restart.
#[actix::test]
async fn a_forgotten_message_begins_a_later_round() {
    for restart in [false, true] {
        let mut world = World::new();
        world.append([(None, 0)]);
        let mut living = world.begin(partner(), |_, _| Reply::Take);
        living.idle().await;
        living
            .until(|l| l.memory.state.lock().partitions[&AT].counts.delivered == 1)
            .await;
        assert!(living.command(Action::Forget { at: AT, id: id_of(0) }).await);
        if restart {
            living.stop().await;
            living = world.begin(partner(), |_, _| Reply::Take);
        }
        world.append([(None, 0)]);
        living
            .until(|l| l.memory.state.lock().partitions[&AT].counts.delivered == 2)
            .await;
        living.stop().await;
        assert_eq!(world.memory.state.lock().partitions[&AT].next_round(&id_of(0)), 3);
    }
}

/// An effect of an entry that the partition began from is known to it.
#[actix::test]
async fn an_effect_that_the_start_knows_is_ignored() {
    let mut world = World::new();
    world.append([(None, 0)]);
    let living = world.begin(partner(), |_, _| Reply::Refuse);
    living
        .until(|l| {
            l.memory
                .state
                .lock()
                .partitions
                .get(&AT)
                .is_some_and(|p| p.counts.dead == 1)
        })
        .await;
    living.stop().await;
    let opened = crate::core::ledger::entry::Opened {
        at: AT,
        id: id_of(0),
        round: 2,
        when: Time(1),
        idempotency_key: "again".into(),
    };
    let offset = world.memory.state.lock().next;
    world.wrote(Body::Opened(opened));
    let living = world.begin(partner(), |_, _| Reply::Take);
    living
        .until(|l| l.memory.state.lock().partitions[&AT].counts.delivered == 1)
        .await;
    // It comes late: the partition began behind it, and has sent the round.
    let effect = crate::core::ledger::fold::Effect::Opened {
        at: AT,
        id: id_of(0),
        round: 2,
        key: KeyHash(1),
        offset: 0,
        idempotency_key: "again".into(),
    };
    carry_out(offset, &effect, &living.route, Some(&living.actor));
    living.idle().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 2);
}

/// Called delivered while it stood at the gate, and forgotten before its turn came: it is sent, once, with whatever
/// record of it has come meanwhile.
#[actix::test]
async fn a_mark_that_was_taken_back_swallows_nothing() {
    let mut world = World::new();
    world.append([(None, 0)]);
    let living = world.begin(partner(), |_, _| Reply::Take);
    living.pause(true);
    living.until(|l| l.route.partner.gate.waiting() == 1).await;
    assert!(living.command(mark(0)).await);
    let forget = Action::Forget { at: AT, id: id_of(0) };
    assert!(living.command(forget).await);
    world.append([(None, 0)]);
    living.pause(false);
    living.idle().await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen.len(), 1);
    assert_eq!(world.position(), 2);
}

/// Replays that a rule passes over: each leaves its place to the next one. A replayed record that is no message has an ID
/// as well, which a rule may name.
#[actix::test]
async fn replays_that_a_rule_passes_over_leave_their_places() {
    const MANY: u64 = 200;
    let mut world = World::new();
    world.append((0..MANY).map(|n| (None, INVALID + n)));
    let mut config = partner();
    config.flood.dead_in_a_row = 0;
    world.live(config.clone(), |_, _| Reply::Take).await;
    let rule = |n: u64| SkipRule {
        rule: n + 1,
        topic: "t".into(),
        partner: None,
        matches: SkipMatch::Id(id_of(INVALID + n).to_string().into_bytes().into()),
        reason: "flood".into(),
        made: Time(1),
        expires: None,
    };
    let rules: Vec<_> = (0..MANY).map(rule).collect();
    for n in 0..MANY {
        let opened = Body::Opened(crate::core::ledger::entry::Opened {
            at: AT,
            id: id_of(INVALID + n),
            round: 2,
            when: Time(1),
            idempotency_key: "again".into(),
        });
        world.wrote(opened);
    }
    config.concurrency = 2;
    let living = world.begin(config, |_, _| Reply::Take);
    let skips = crate::core::resolve::Skips::of(rules.iter(), "t", "p", &living.route.scope);
    living.route.orders.set_skips(0, Arc::new(skips));
    // More than one of them has its place at once, and nothing else happens that would give a free place away.
    living
        .until(|l| l.memory.state.lock().partitions[&AT].counts.skipped == MANY)
        .await;
    living.stop().await;
    assert_eq!(world.partner.lock().seen, []);
}
