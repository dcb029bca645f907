//! How far a failure or a wait reaches: a message, its key, its host, this node, or the whole partner (I8).

use super::*;
use crate::core::breaker::REFUSED_ENOUGH;

/// One poisonous record used to stop the whole partner for a minute at a time, and never ended itself.
#[actix_rt::test]
async fn a_403_that_only_some_messages_get_is_their_own() {
    let mut world = World::new();
    world.append(apart(200));
    let mut config = partner();
    config.concurrency = 4;
    config.retry.attempts = Some(3);
    let bad = |n: u64| n.is_multiple_of(40);
    world
        .live(
            config,
            move |n, _| if bad(n) { Reply::Forbid } else { Reply::Take },
        )
        .await;
    let counts = world.memory.state.lock().partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead), (195, 5));
    for n in (0..200).filter(|n| bad(*n)) {
        // The first one is not counted until it is known whose it is.
        assert!(
            (3..=4).contains(&requests(&world, n)),
            "{n}: {}",
            requests(&world, n)
        );
    }
}

#[actix_rt::test]
async fn a_403_for_everybody_pauses_the_partner_and_counts_for_nobody_not_even_after_a_restart() {
    let mut world = World::new();
    world.append(apart(50));
    let mut config = partner();
    config.concurrency = 4;
    config.retry.attempts = Some(1);
    let partner = world.partner.clone();
    // Four on their way, and three probes; then a second's pause.
    let paused = move |state: &LaneState| {
        let closed = |m: crate::core::ledger::fold::Message| matches!(m.state, MessageState::Later { .. });
        partner.lock().seen.len() >= 7
            && state
                .partitions
                .get(&AT)
                .is_some_and(|p| p.messages.values().all(closed))
    };
    world
        .live_until(config.clone(), |_, _| Reply::Forbid, paused)
        .await;
    {
        let state = world.memory.state.lock();
        assert_eq!(state.partitions[&AT].counts.dead, 0);
        for message in state.partitions[&AT].messages.values() {
            assert_eq!((message.attempts, message.status), (0, 403));
        }
    }
    // With an attempt counted they would be dead at the first failure now.
    world.live(config, |_, _| Reply::Take).await;
    let counts = world.memory.state.lock().partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead), (50, 0));
}

/// Behind a redirect a 403 was nobody's: each 307 said that all was well, so the message was never counted, given up
/// or held back. 937 requests in 17 seconds.
#[actix_rt::test]
async fn a_403_behind_a_redirect_pauses_the_partner_and_counts_for_nobody() {
    let mut world = World::new();
    world.append(apart(5));
    let mut config = partner();
    config.retry.attempts = Some(3);
    let living = world.begin(config, |_, _| Reply::ForbidBehind);
    let left_alone = |l: &Living| l.route.partner.gate.look(|t| t.breaker().left_alone());
    living.until(|l| left_alone(l).is_some()).await;
    assert!(matches!(left_alone(&living), Some((Cause::Credentials, _))));
    living.stop().await;
    // Two requests for each of five first ones and three probes, and as many to redirects whose next hop was waiting.
    let seen = world.partner.lock().seen.len();
    assert!((8..=26).contains(&seen), "{seen}");
    assert_eq!(world.memory.state.lock().partitions[&AT].counts.dead, 0);
}

/// The same where the others are answered: they end by their own attempts, also once nobody else is left. They are fewer
/// than show that the credentials are bad for everybody: whether others are answered in between is a matter of time.
#[actix_rt::test]
async fn messages_that_alone_are_refused_end_once_the_others_are_through() {
    const ALONE: u64 = REFUSED_ENOUGH as u64 - 1;
    for refusal in [Reply::Forbid, Reply::ForbidBehind] {
        let mut world = World::new();
        world.append(apart(40));
        let mut config = partner();
        config.retry.attempts = Some(3);
        config.concurrency = 8;
        let alone = |n: u64| n % 10 == 9 && n / 10 >= 4 - ALONE;
        let plan = move |n: u64, _| if alone(n) { refusal } else { Reply::Take };
        world.live(config, plan).await;
        let counts = world.memory.state.lock().partitions[&AT].counts;
        assert_eq!(
            (counts.delivered, counts.dead),
            (40 - ALONE, ALONE),
            "{refusal:?}"
        );
        let seen = world.partner.lock().seen.len() as u64;
        assert!(seen <= 40 - ALONE + ALONE * 8, "{refusal:?}: {seen}");
    }
}

/// 429 with Retry-After for one user: the rule's scope keeps it from everybody else.
#[actix_rt::test]
async fn a_wait_that_concerns_a_message_or_key_holds_nobody_else() {
    for concerns in [Concerns::Message, Concerns::Key] {
        let mut world = World::new();
        world.append(keyed(70));
        let plan = move |n, _| match n {
            0 => Reply::Wait(Some(concerns)),
            _ => Reply::Take,
        };
        let others = |state: &LaneState| {
            state
                .partitions
                .get(&AT)
                .is_some_and(|p| p.counts.delivered == 60)
        };
        world.live_until(partner(), plan, others).await;
        let seen = world.partner.lock().seen.clone();
        assert_eq!(seen.len(), 61, "{concerns:?}: its key waits behind it, in order");
    }
}

#[actix_rt::test]
async fn a_key_rests_although_its_message_has_ended_where_the_rule_says_so() {
    for (concerns, next) in [(Concerns::Message, 1), (Concerns::Key, 0)] {
        let mut world = World::new();
        // The key's messages come one behind the other; the second is there when the first is answered, for those behind
        // it have been sent.
        world.silent_until = 39;
        world.append((0..40).map(|i| (Some(format!("k{}", if i < 2 { 0 } else { i })), i)));
        let mut config = partner();
        config.retry.attempts = Some(1);
        let plan = move |n, _| match n {
            0 => Reply::Wait(Some(concerns)),
            _ => Reply::Take,
        };
        let over = move |state: &LaneState| {
            let at = state.partitions.get(&AT);
            at.is_some_and(|p| p.counts.dead == 1 && p.counts.delivered == 38 + next)
        };
        world.live_until(config, plan, over).await;
        assert_eq!(requests(&world, 1) as u64, next, "{concerns:?}");
    }
}

#[actix_rt::test]
async fn what_this_node_lacks_is_not_the_partners_failure_and_burns_no_attempt() {
    let mut world = World::new();
    world.append(apart(10));
    world.short = Arc::new(AtomicUsize::new(3));
    let mut config = partner();
    config.concurrency = 2;
    config.retry.attempts = Some(1);
    config.breaker.failures = 1;
    config.breaker.open = Duration::from_secs(3_600);
    config.breaker.longest = Duration::from_secs(3_600);
    world.live(config, |_, _| Reply::Take).await;
    let counts = world.memory.state.lock().partitions[&AT].counts;
    assert_eq!((counts.delivered, counts.dead), (10, 0));
    assert_eq!(world.partner.lock().seen.len(), 10);
}

/// URLs are records, and one host of them is dead: refuses, or never answers a connect.
#[actix_rt::test]
async fn a_dead_host_harms_only_its_own_messages() {
    type Order = fn(u64) -> bool;
    let orders: [(&str, Order); 3] = [
        ("all dead ones first", |n| n < 200),
        ("nineteen dead ones for each live one", |n| n % 20 != 0),
        ("in turns", |n| n % 2 == 0),
    ];
    for (order, dead) in orders {
        for silent in [false, true] {
            let mut world = World::new();
            let live = (0..400).filter(|n| !dead(*n)).count();
            world
                .append((0..400).map(|n| (Some(format!("{}{n}", if dead(n) { "dead" } else { "live" })), n)));
            world.silent_until = if silent { live } else { 0 };
            let mut config = partner();
            config.concurrency = 8;
            let all_live = move |state: &LaneState| {
                state
                    .partitions
                    .get(&AT)
                    .is_some_and(|p| p.counts.delivered == live as u64)
            };
            world.live_until(config, |_, _| Reply::Take, all_live).await;
            let seen = world.partner.lock().seen.len();
            assert_eq!(seen, live, "{order}, silent: {silent}");
        }
    }
}
