use super::*;
use crate::config::model::{LimitConfig, Rate};
use proptest::prelude::*;
use smallvec::smallvec;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

const START: Time = Time::from_millis(1_700_000_000_000);
const LEAD: Duration = Duration::from_millis(3);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn settings(concurrency: u32) -> BreakerSettings {
    BreakerSettings {
        failures: 5,
        open: ms(1_000),
        longest: ms(8_000),
        probes: 1,
        doubts_in_a_row: 5,
        concurrency,
        doubts_park: true,
        doubt_probe: Duration::from_secs(60),
    }
}

fn draw(budget: u64, by: u64) -> BudgetDraw {
    BudgetDraw { budget, by }
}

/// Budget 1: one for all; budgets 2 and 3: split.
fn budgets(one: u64, split: u64) -> BudgetTable {
    let mut table = BudgetTable::new();
    for (budget, count) in [(1, one), (2, split), (3, split)] {
        let rates = vec![Rate::Sliding {
            count,
            window: ms(1_000),
        }];
        let _ = table
            .set(
                budget,
                &LimitConfig {
                    rates,
                    by: None,
                    burst: None,
                    ..LimitConfig::default()
                },
                START,
            )
            .unwrap();
    }
    table
}

/// Cases of the property tests; more with `SLUICEGATE_CASES`.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("SLUICEGATE_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default);
    ProptestConfig::with_cases(cases)
}

#[derive(Clone, Debug)]
enum Step {
    Enqueue { queue: u32, kind: u8 },
    Try { kind: u8 },
    Cancel(usize),
    Finish(usize, u8),
    Miss(usize),
    Tick(u64),
    Pause(u64),
    Operator(bool),
    Remaining(u8, u16),
    Ask(usize),
    Raise,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0u32..5, any::<u8>()).prop_map(|(queue, kind)| Step::Enqueue { queue, kind }),
        2 => any::<u8>().prop_map(|kind| Step::Try { kind }),
        1 => any::<usize>().prop_map(Step::Cancel),
        6 => (any::<usize>(), any::<u8>()).prop_map(|(i, kind)| Step::Finish(i, kind)),
        1 => any::<usize>().prop_map(Step::Miss),
        5 => (0u64..300_000).prop_map(Step::Tick),
        1 => (0u64..2_000).prop_map(Step::Pause),
        1 => any::<bool>().prop_map(Step::Operator),
        1 => (any::<u8>(), 0u16..3_000).prop_map(|(n, reset)| Step::Remaining(n % 8, reset)),
        4 => (1usize..8).prop_map(Step::Ask),
        1 => Just(Step::Raise),
    ];
    prop::collection::vec(step, 0..250)
}

fn draws(kind: u8) -> Draws {
    match kind % 8 {
        0 => smallvec![],
        1 => smallvec![draw(1, 0)],
        2 => smallvec![draw(2, u64::from(kind >> 3 & 1) + 1)],
        3 => smallvec![draw(9, 0)],
        n => smallvec![
            draw(2, u64::from(n & 1) + 1),
            draw(3, u64::from(n >> 1 & 1) + 1),
            draw(1, 0)
        ],
    }
}

/// A partner's limiter actor in small: asks again when told to, and after each event.
struct World {
    gate: Turnstile,
    budgets: BudgetTable,
    now: Time,
    ask_at: Time,
    waiting: HashSet<u64>,
    out: Vec<Granted>,
    in_flight: Vec<Slot>,
    next: u64,
    concurrency: usize,
    /// What each ticket is, and those that were sent away, by when they come back.
    tickets: HashMap<u64, (u32, Draws)>,
    away: BTreeSet<(Time, u64)>,
}

impl World {
    fn enqueue(&mut self, ticket: u64) {
        let (queue, draws) = self.tickets[&ticket].clone();
        self.waiting.insert(ticket);
        self.gate.enqueue(queue, ticket, draws.clone());
        self.gate.enqueue(queue, ticket, draws);
    }

    /// When something happens by itself.
    fn next_event(&self) -> Time {
        let back = self.away.first().map_or(Time::NEVER, |&(at, _)| at);
        self.ask_at.min(back)
    }

    fn come_back(&mut self) {
        while let Some(&(at, ticket)) = self.away.first()
            && at <= self.now
        {
            self.away.remove(&(at, ticket));
            self.budgets.came_back(&self.tickets[&ticket].1);
            self.enqueue(ticket);
        }
    }

    fn ask(&mut self, max: usize) -> Result<(), TestCaseError> {
        let mut granted = Vec::new();
        self.ask_at = self
            .gate
            .grant(self.now, LEAD, max, &mut self.budgets, &mut granted);
        prop_assert!(granted.len() <= max);
        for Granted { ticket, slot } in granted {
            prop_assert!(self.waiting.remove(&ticket), "{} was not waiting", ticket);
            self.granted(slot)?;
        }
        for Deferred { ticket, until } in self.gate.deferred() {
            prop_assert!(self.waiting.remove(&ticket), "{} was not waiting", ticket);
            let (queue, draws) = &self.tickets[&ticket];
            prop_assert!(queue & STAYS == 0 && draws.iter().any(|d| d.by != 0));
            prop_assert!(until >= self.now.plus(NEAR), "it would come and go without end");
            self.away.insert((until, ticket));
        }
        prop_assert!(self.ask_at > self.now || self.gate.waiting() > 0);
        Ok(())
    }

    fn granted(&mut self, slot: Slot) -> Result<(), TestCaseError> {
        prop_assert!(slot.at >= self.now && slot.at <= self.now.plus(FARTHEST));
        prop_assert!(slot.valid_until == Time::NEVER || slot.valid_until >= self.now.plus(LEAD));
        self.in_flight.push(slot);
        prop_assert!(self.in_flight.len() <= self.concurrency);
        Ok(())
    }

    fn tick(&mut self, us: u64) -> Result<(), TestCaseError> {
        let until = self.now.plus(Duration::from_micros(us));
        let mut turns = 0;
        while self.next_event() <= until {
            self.now = self.now.max(self.next_event());
            self.come_back();
            self.ask(4)?;
            turns += 1;
            prop_assert!(turns < 1_000, "asked to ask again and again");
        }
        self.now = until;
        Ok(())
    }
}

/// Whatever the interleaving: every ticket is granted or cancelled in the end, none twice; places are kept.
fn everything_is_served(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut w = World {
        gate: Turnstile::new(0, settings(6), START),
        budgets: budgets(40, 4),
        now: START,
        ask_at: Time::NEVER,
        waiting: HashSet::new(),
        out: Vec::new(),
        in_flight: Vec::new(),
        next: 0,
        concurrency: 6,
        tickets: HashMap::new(),
        away: BTreeSet::new(),
    };
    for step in steps {
        match step {
            Step::Enqueue { queue, kind } => {
                w.next += 1;
                let stays = if kind > 200 { STAYS } else { 0 };
                w.tickets.insert(w.next, (queue | stays, draws(kind)));
                w.enqueue(w.next);
                w.ask(8)?;
            }
            Step::Try { kind } => {
                if let Some(slot) = w.gate.try_grant(w.now, LEAD, &draws(kind), &mut w.budgets) {
                    prop_assert!(w.waiting.is_empty());
                    w.granted(slot)?;
                }
            }
            Step::Cancel(i) if w.next > 0 => {
                let ticket = i as u64 % w.next + 1;
                prop_assert_eq!(w.gate.cancel(ticket), w.waiting.remove(&ticket));
            }
            Step::Finish(i, kind) if !w.in_flight.is_empty() => {
                let slot = w.in_flight.swap_remove(i % w.in_flight.len());
                let result = match kind {
                    0..10 => AttemptResult::Doubt,
                    10..16 => AttemptResult::DoubtAnswered,
                    16..48 => AttemptResult::Failed,
                    48..56 => AttemptResult::CredentialsRefused {
                        again: false,
                        since: w.now,
                    },
                    56..64 => AttemptResult::NotMade,
                    _ => AttemptResult::Answered,
                };
                w.gate.finish(&slot, result, w.now, u64::from(kind) << 56);
                w.ask(8)?;
            }
            Step::Miss(i) if !w.in_flight.is_empty() => {
                let slot = w.in_flight.swap_remove(i % w.in_flight.len());
                w.gate.missed(&slot, w.now, &mut w.budgets);
                w.ask(8)?;
            }
            Step::Tick(us) => w.tick(us)?,
            Step::Pause(n) => {
                w.gate.pause_until(w.now.plus(ms(n)), w.now);
                w.ask(8)?;
            }
            Step::Operator(true) => w.gate.pause(w.now),
            Step::Operator(false) => {
                w.gate.resume(w.now);
                w.ask(8)?;
            }
            Step::Remaining(n, reset) => {
                if let Some(slot) = w.in_flight.last() {
                    w.gate
                        .observe_remaining(u64::from(n), ms(u64::from(reset)), slot.seq, w.now);
                }
            }
            Step::Ask(max) => w.ask(max)?,
            Step::Raise => w.gate.limits_changed(),
            Step::Cancel(_) | Step::Finish(..) | Step::Miss(_) => {}
        }
        prop_assert_eq!(w.gate.waiting(), w.waiting.len());
        prop_assert_eq!(w.gate.in_use() as usize, w.in_flight.len());
    }
    // The partner is well again: all are served, by asking when told to and after each end only.
    w.gate.resume(w.now);
    w.ask(8)?;
    let patience = w.now.plus(ms(3_600_000));
    let mut turns = 0;
    while !w.waiting.is_empty() || !w.in_flight.is_empty() || !w.away.is_empty() {
        for slot in std::mem::take(&mut w.in_flight) {
            w.gate.finish(&slot, AttemptResult::Answered, w.now, 0);
        }
        w.ask(8)?;
        turns += 1;
        prop_assert!(turns < 2_000, "asked to ask again and again: {:?}", w.gate);
        if w.in_flight.is_empty() && !(w.waiting.is_empty() && w.away.is_empty()) {
            prop_assert!(
                w.ask_at < Time::NEVER || w.waiting.is_empty(),
                "{} tickets are forgotten",
                w.waiting.len()
            );
            prop_assert!(w.next_event() < patience, "not served within an hour");
            w.now = w.now.max(w.next_event());
            w.come_back();
            w.ask(8)?;
        }
    }
    prop_assert_eq!(
        w.gate.grant(w.now, LEAD, 8, &mut w.budgets, &mut w.out),
        Time::NEVER
    );
    Ok(())
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn every_ticket_is_granted_or_cancelled(steps in steps()) {
        everything_is_served(steps)?;
    }

}

proptest! {
    #![proptest_config(cases(60))]

    /// Queues that always have tickets get the same number of turns, whatever limits the partner.
    #[test]
    fn busy_queues_get_equal_shares(
        queues in 2u32..12,
        rate in 5u64..2_000,
        concurrency in 1u32..20,
        latency_us in 100u64..100_000,
        depth in 1usize..4,
    ) {
        let mut gate = Turnstile::new(0, settings(concurrency), START);
        let mut budgets = budgets(rate, 1);
        let mut ends: BTreeMap<(Time, u64), Slot> = BTreeMap::new();
        let mut queue_of = HashMap::new();
        let mut served = vec![0u64; queues as usize];
        let mut ticket = 0u64;
        let mut enqueue = |gate: &mut Turnstile, queue_of: &mut HashMap<u64, u32>, queue: u32| {
            ticket += 1;
            queue_of.insert(ticket, queue);
            gate.enqueue(queue, ticket, smallvec![draw(1, 0)]);
        };
        for queue in 0..queues {
            (0..depth).for_each(|_| enqueue(&mut gate, &mut queue_of, queue));
        }
        let (mut now, mut total) = (START, 0);
        while total < 600 {
            let mut out = Vec::new();
            let ask = gate.grant(now, LEAD, 3, &mut budgets, &mut out);
            for Granted { ticket, slot } in out {
                let queue = queue_of[&ticket];
                served[queue as usize] += 1;
                total += 1;
                // Its queue has the next one at once: it never runs dry.
                enqueue(&mut gate, &mut queue_of, queue);
                ends.insert((slot.at.plus(Duration::from_micros(latency_us)), slot.seq), slot);
            }
            let most = served.iter().max().unwrap();
            let least = served.iter().min().unwrap();
            prop_assert!(most - least <= 1 + u64::from(depth == 1), "{:?}", served);
            let end = ends.first_key_value().map_or(Time::NEVER, |(&(at, _), _)| at);
            now = now.max(ask.min(end));
            while let Some(first) = ends.first_entry() {
                if first.key().0 > now {
                    break;
                }
                gate.finish(&first.remove(), AttemptResult::Answered, now, 0);
            }
        }
    }

    /// I5 through the gate: random arrivals, latencies, missed slots and late timers; at most the limit in every
    /// second, and with enough to do at least 98.5 % of it.
    #[test]
    fn the_limit_holds_and_is_used(
        rate in 20u64..400,
        seed: u64,
        misses in prop_oneof![Just(0u8), 0u8..20],
        // Enough places for the rate at this latency.
        latency_us in 100u64..20_000,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut gate = Turnstile::new(0, settings(64), START);
        let mut budgets = budgets(rate, 1);
        let mut ends: BTreeMap<(Time, u64), Slot> = BTreeMap::new();
        let (mut now, mut ticket, mut starts) = (START, 0, Vec::new());
        let until = START.plus(ms(5_000));
        while now < until {
            while gate.waiting() < 100 {
                ticket += 1;
                gate.enqueue(rng.u32(0..4), ticket, smallvec![draw(1, 0)]);
            }
            let mut out = Vec::new();
            let ask = gate.grant(now, LEAD, 16, &mut budgets, &mut out);
            for Granted { slot, .. } in out {
                if rng.u8(..) < misses {
                    gate.missed(&slot, now, &mut budgets);
                    continue;
                }
                let span = slot.valid_until.since(slot.at).as_micros() as u64;
                let start = slot.at.plus(Duration::from_micros(rng.u64(0..=2 * span)));
                starts.push(start);
                ends.insert((start.plus(Duration::from_micros(latency_us)), slot.seq), slot);
            }
            let end = ends.first_key_value().map_or(Time::NEVER, |(&(at, _), _)| at);
            // Timers fire up to 2 ms late.
            now = now.max(ask.min(end)).plus(Duration::from_micros(rng.u64(1..2_000)));
            while let Some(first) = ends.first_entry() {
                if first.key().0 > now {
                    break;
                }
                gate.finish(&first.remove(), AttemptResult::Answered, now, 0);
            }
        }
        starts.sort_unstable();
        for pair in starts.windows(rate as usize + 1) {
            prop_assert!(pair[rate as usize].since(pair[0]) >= ms(1_000), "more than {} in a second", rate);
        }
        if misses == 0 {
            let used = starts.iter().filter(|&&s| s < until).count() as f64 / (rate * 5) as f64;
            prop_assert!(used >= 0.985, "{:.4} of {} used", used, rate);
        }
    }
}

#[test]
fn without_rates_a_slot_is_now_and_never_ends() {
    let mut gate = Turnstile::new(0, settings(2), START);
    let mut budgets = BudgetTable::new();
    let first = gate.try_grant(START, LEAD, &[], &mut budgets).unwrap();
    assert_eq!(
        (first.at, first.valid_until, first.seq, first.probe),
        (START, Time::NEVER, 1, None)
    );
    assert!(gate.try_grant(START, LEAD, &[], &mut budgets).is_some());
    assert!(
        gate.try_grant(START, LEAD, &[], &mut budgets).is_none(),
        "no place is free"
    );
    gate.enqueue(0, 7, smallvec![]);
    gate.finish(&first, AttemptResult::Answered, START, 0);
    assert!(
        gate.try_grant(START, LEAD, &[], &mut budgets).is_none(),
        "7 comes first"
    );
    let mut out = Vec::new();
    assert_eq!(gate.grant(START, LEAD, 8, &mut budgets, &mut out), Time::NEVER);
    assert_eq!(out[0].ticket, 7);
}

#[test]
fn slots_are_given_the_lead_ahead() {
    let mut gate = Turnstile::new(0, settings(8), START);
    let mut budgets = budgets(1, 1);
    assert_eq!(
        gate.try_grant(START, LEAD, &[draw(1, 0)], &mut budgets)
            .unwrap()
            .at,
        START
    );
    gate.enqueue(0, 1, smallvec![draw(1, 0)]);
    let mut out = Vec::new();
    let next = START.plus(ms(1_014));
    assert_eq!(
        gate.grant(START, LEAD, 8, &mut budgets, &mut out),
        next.minus(LEAD)
    );
    assert!(out.is_empty());
    assert_eq!(
        gate.grant(next.minus(LEAD), LEAD, 8, &mut budgets, &mut out),
        Time::NEVER
    );
    assert_eq!(
        (out[0].slot.at, out[0].slot.valid_until),
        (next, next.plus(ms(4)))
    );
}

#[test]
fn an_exhausted_value_holds_back_nobody_else() {
    let mut gate = Turnstile::new(0, settings(100), START);
    let mut budgets = budgets(1_000, 2);
    // Value 1 floods queue 0 before value 2 comes, in the same queue and in another one.
    for ticket in 0..50 {
        gate.enqueue(0, ticket, smallvec![draw(2, 1), draw(1, 0)]);
    }
    gate.enqueue(0, 100, smallvec![draw(2, 2), draw(1, 0)]);
    gate.enqueue(1, 101, smallvec![draw(2, 2), draw(1, 0)]);
    let mut out = Vec::new();
    let ask = gate.grant(START, LEAD, 100, &mut budgets, &mut out);
    let tickets: HashSet<u64> = out.iter().map(|g| g.ticket).collect();
    assert_eq!(tickets, HashSet::from([0, 1, 100, 101]));
    assert_eq!(
        (ask, gate.waiting()),
        (Time::NEVER, 0),
        "the others do not stand here"
    );
    // Each of them has a slot of its own to come back for, two a second, in the order in which they came.
    let deferred: Vec<Deferred> = gate.deferred().collect();
    assert_eq!(
        deferred.iter().map(|d| d.ticket).collect::<Vec<_>>(),
        Vec::from_iter(2..50)
    );
    for (n, pair) in (1..).zip(deferred.chunks(2)) {
        let slot = START.plus(ms(1_014 * n));
        for Deferred { until, .. } in pair {
            assert!(*until < slot && *until > slot.minus(NEAR * 2), "{n}: {until:?}");
        }
    }
    assert_eq!(gate.deferred_until(), deferred[47].until);
    // Who comes back for the last but one turn finds that slot near, and has it.
    let back = deferred[1].until;
    budgets.came_back(&[draw(2, 1), draw(1, 0)]);
    gate.enqueue(0, 3, smallvec![draw(2, 1), draw(1, 0)]);
    let ask = gate.grant(back, LEAD, 100, &mut budgets, &mut out);
    assert_eq!((gate.waiting(), gate.deferred().count()), (1, 0));
    assert!(ask < back.plus(NEAR));
    let _ = gate.grant(ask, LEAD, 100, &mut budgets, &mut out);
    assert_eq!(out.last().map(|g| g.ticket), Some(3));
}

#[test]
fn a_fast_value_uses_its_limit_and_few_of_it_stand_here() {
    let mut gate = Turnstile::new(0, settings(1_000), START);
    let mut budgets = budgets(1_000, 200);
    let (mut now, mut out) = (START, Vec::new());
    let mut away: BTreeSet<(Time, u64)> = (0..300).map(|ticket| (START, ticket)).collect();
    let mut comings = 0;
    while out.len() < 300 {
        while let Some(&(at, ticket)) = away.first()
            && at <= now
        {
            away.remove(&(at, ticket));
            if comings >= 300 {
                budgets.came_back(&[draw(2, 1)]);
            }
            comings += 1;
            gate.enqueue(0, ticket, smallvec![draw(2, 1)]);
        }
        let ask = gate.grant(now, LEAD, 1_000, &mut budgets, &mut out);
        away.extend(gate.deferred().map(|d| (d.until, d.ticket)));
        assert!(gate.waiting() <= 4, "what 25 ms allow");
        let back = away.first().map_or(Time::NEVER, |&(at, _)| at);
        now = now.max(ask.min(back));
    }
    let tickets: HashSet<u64> = out.iter().map(|granted| granted.ticket).collect();
    assert_eq!((tickets.len(), out.len()), (300, 300));
    // 200 at the beginning, and 100 when these count no more.
    assert!(out[199].slot.at < START.plus(ms(200)), "{:?}", out[199].slot);
    let next = START.plus(ms(1_014));
    assert!(
        out[200].slot.at >= next && out[299].slot.at < next.plus(ms(100)),
        "{:?}",
        out[299].slot
    );
    assert!(comings < 1_500, "{comings}");
}

/// A value with a backlog of several windows uses its limit, also where a busy machine has missed slots and set the next
/// ones apart: who comes back for its turn and finds no slot is not sent behind all others.
#[test]
fn a_long_backlog_of_one_value_uses_its_limit() {
    for misses in [0, 12] {
        let mut gate = Turnstile::new(0, settings(1_000), START);
        let mut budgets = budgets(1_000, 50);
        for _ in 0..misses {
            budgets.missed(&[draw(2, 9)], START);
        }
        let (mut now, mut out, until) = (START, Vec::new(), START.plus(ms(20_000)));
        let mut away: BTreeSet<(Time, u64)> = (0..5_000).map(|ticket| (START, ticket)).collect();
        let mut been_away = HashSet::new();
        while now < until {
            while let Some(&(at, ticket)) = away.first()
                && at <= now
            {
                away.remove(&(at, ticket));
                let back = !been_away.insert(ticket);
                if back {
                    budgets.came_back(&[draw(2, 1)]);
                }
                gate.enqueue(if back { NEXT } else { 0 }, ticket, smallvec![draw(2, 1)]);
            }
            let ask = gate.grant(now, LEAD, 1_000, &mut budgets, &mut out);
            away.extend(gate.deferred().map(|d| (d.until, d.ticket)));
            let back = away.first().map_or(Time::NEVER, |&(at, _)| at);
            // The queues look every 5 ms.
            now = now.plus(Duration::from_micros(1)).max(ask.min(back.plus(ms(5))));
        }
        let started = out.iter().filter(|granted| granted.slot.at < until).count();
        assert!(started >= 900, "{started} of 1,000, {misses} missed before");
    }
}

#[test]
fn what_was_sent_on_stays_however_long_it_takes() {
    let mut gate = Turnstile::new(0, settings(10), START);
    let mut budgets = budgets(1_000, 1);
    let mut out = Vec::new();
    (0..3).for_each(|ticket| gate.enqueue(STAYS, ticket, smallvec![draw(2, 1)]));
    let ask = gate.grant(START, LEAD, 10, &mut budgets, &mut out);
    assert_eq!((out.len(), gate.waiting(), gate.deferred().count()), (1, 2, 0));
    assert_eq!(ask, START.plus(ms(1_014)).minus(LEAD));
}

#[test]
fn who_missed_its_slot_comes_before_those_that_are_away() {
    let mut gate = Turnstile::new(0, settings(10), START);
    let mut budgets = budgets(1_000, 1);
    let mut out = Vec::new();
    (0..10).for_each(|ticket| gate.enqueue(0, ticket, smallvec![draw(2, 1)]));
    let _ = gate.grant(START, LEAD, 10, &mut budgets, &mut out);
    gate.missed(&out[0].slot, START, &mut budgets);
    assert_eq!(gate.deferred().count(), 9);
    gate.enqueue(NEXT, 0, smallvec![draw(2, 1)]);
    let _ = gate.grant(START, LEAD, 10, &mut budgets, &mut out);
    let deferred: Vec<Deferred> = gate.deferred().collect();
    assert_eq!(deferred.len(), 1);
    assert!(deferred[0].until <= START.plus(ms(1_014)), "{deferred:?}");
}

#[test]
fn two_split_budgets_that_are_both_in_demand_starve_nobody() {
    let mut gate = Turnstile::new(0, settings(100), START);
    let mut budgets = budgets(1_000, 1);
    // (1, 2) keeps budget 2's value 1 busy, (2, 1) budget 3's value 1; ticket 1 needs both.
    let both: Draws = smallvec![draw(2, 1), draw(3, 1)];
    let others: [Draws; 2] = [
        smallvec![draw(2, 1), draw(3, 2)],
        smallvec![draw(2, 2), draw(3, 1)],
    ];
    for (i, draws) in others.iter().enumerate() {
        for n in 0..200 {
            gate.enqueue(i as u32, 1_000 * (i as u64 + 1) + n, draws.clone());
        }
    }
    gate.enqueue(7, 1, both);
    let (mut now, mut out) = (START, Vec::new());
    while !out.iter().any(|g: &Granted| g.ticket == 1) {
        let from = out.len();
        now = now.max(gate.grant(now, LEAD, 8, &mut budgets, &mut out));
        for granted in &out[from..] {
            gate.finish(&granted.slot, AttemptResult::Answered, now, 0);
        }
        assert!(now < START.plus(ms(40_000)), "starved");
    }
}

#[test]
fn remaining_counts_from_the_start_that_was_answered() {
    let mut gate = Turnstile::new(0, settings(100), START);
    let mut budgets = BudgetTable::new();
    let mut slots: Vec<Slot> = (0..5)
        .map(|_| gate.try_grant(START, LEAD, &[], &mut budgets).unwrap())
        .collect();
    // The answer to the second start: three more may come, of which three are on their way.
    gate.observe_remaining(3, ms(2_000), slots[1].seq, START);
    assert!(gate.try_grant(START, LEAD, &[], &mut budgets).is_none());
    // The answer to the first is older news, that to the third newer.
    gate.observe_remaining(50, ms(2_000), slots[0].seq, START);
    assert!(gate.try_grant(START, LEAD, &[], &mut budgets).is_none());
    gate.observe_remaining(3, ms(2_000), slots[2].seq, START);
    slots.push(gate.try_grant(START, LEAD, &[], &mut budgets).unwrap());
    gate.enqueue(0, 1, smallvec![]);
    let mut out = Vec::new();
    let ask = gate.grant(START, LEAD, 8, &mut budgets, &mut out);
    assert_eq!(ask, START.plus(ms(1_997)));
    assert_eq!(gate.grant(ask, LEAD, 8, &mut budgets, &mut out), Time::NEVER);
    assert_eq!(out[0].slot.at, START.plus(ms(2_000)));
}

#[test]
fn the_partners_pause_holds_for_all_and_counts_as_outage() {
    let mut gate = Turnstile::new(0, settings(100), START);
    let mut budgets = BudgetTable::new();
    gate.pause_until(START.plus(ms(5_000)), START);
    gate.pause_until(START.plus(ms(1_000)), START);
    assert!(
        gate.try_grant(START.plus(ms(4_990)), LEAD, &[], &mut budgets)
            .is_none()
    );
    let slot = gate
        .try_grant(START.plus(ms(4_998)), LEAD, &[], &mut budgets)
        .unwrap();
    assert_eq!(slot.at, START.plus(ms(5_000)));
    assert_eq!(gate.outage(START.plus(ms(9_000))), ms(5_000));
    gate.pause(START.plus(ms(10_000)));
    assert_eq!(gate.outage(START.plus(ms(12_000))), ms(7_000));
    gate.resume(START.plus(ms(13_000)));
    assert_eq!(gate.outage(START.plus(ms(20_000))), ms(8_000));
}

#[test]
fn an_open_breaker_lets_probes_through_and_nothing_else() {
    let mut gate = Turnstile::new(0, settings(10), START);
    let mut budgets = BudgetTable::new();
    let slots: Vec<Slot> = (0..5)
        .map(|_| gate.try_grant(START, LEAD, &[], &mut budgets).unwrap())
        .collect();
    slots
        .iter()
        .for_each(|slot| gate.finish(slot, AttemptResult::Failed, START, 0));
    for ticket in 0..10 {
        gate.enqueue(0, ticket, smallvec![]);
    }
    let mut out = Vec::new();
    let ask = gate.grant(START, LEAD, 10, &mut budgets, &mut out);
    assert_eq!((ask, out.len()), (START.plus(ms(1_000)), 0));
    assert_eq!(gate.grant(ask, LEAD, 10, &mut budgets, &mut out), Time::NEVER);
    assert_eq!(out.len(), 1);
    assert!(out[0].slot.probe.is_some());
    // A slot that was not used is no answer: another probe goes.
    let probe = out.remove(0).slot;
    gate.finish(&probe, AttemptResult::NotMade, ask, 0);
    assert_eq!(gate.grant(ask, LEAD, 10, &mut budgets, &mut out), Time::NEVER);
    let probe = out.remove(0).slot;
    gate.finish(&probe, AttemptResult::Answered, ask, 0);
    assert_eq!(gate.grant(ask, LEAD, 10, &mut budgets, &mut out), Time::NEVER);
    assert_eq!(out.len(), 8);
    assert_eq!(gate.outage(ask.plus(ms(9_000))), ms(1_000));
}
