//! Which kept payloads are given up, and when. Pure.
//!
//! Time between samples is believed up to two intervals, as for the age of IDs ([`crate::dedup::age`]): a node that
//! was off for a month, or a clock that jumped, gives up nothing at once. A parked message is never given up for
//! want of room, and stays listed in any case: its doubt is still to be told (I3). What waits for its turn is no
//! business of retention.

use super::fold::{LaneState, MessageState, Sampled};
use super::passed::Passed;
use crate::core::types::{MessageId, Offset, RoutePartition, Time};
use std::time::Duration;

/// A payload in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// When its message came into its present state.
    pub since: Time,
    /// Route and partition.
    pub at: RoutePartition,
    /// Which message.
    pub id: MessageId,
    /// Offset of the ledger entry that holds it.
    pub ledger: Offset,
    /// Its bytes; 0 once it was given up.
    pub bytes: u32,
    /// Whether it was given up already.
    pub dropped: bool,
    /// What it waits for.
    pub kind: PayloadKind,
}

/// Of what a payload is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadKind {
    /// Of a message that is still to be sent.
    Waiting,
    /// Of one in doubt.
    Parked,
    /// Of one that was refused, or passed over.
    Ended,
}

/// What is to be given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GiveUp {
    /// Messages that leave the list, retention being over; their IDs stay remembered. Oldest first.
    pub messages: Vec<(RoutePartition, MessageId)>,
    /// Messages that stay listed without their payload, and where that lies. Oldest first.
    pub payloads: Vec<(RoutePartition, MessageId, Offset)>,
    /// How many of those go for want of room.
    pub for_room: u64,
    /// Bytes that payloads hold now.
    pub bytes: u64,
}

/// Payloads given up in one go. There may be millions, and a list of them all would take more memory than they do.
pub const MOST: usize = 65_536;

impl Payload {
    fn age(&self) -> (Time, Offset, MessageId) {
        (self.since, self.ledger, self.id)
    }
}

/// The payloads in the ledger that may be given up, in no order; the oldest `most` of them. Goes over all messages.
pub fn payloads(state: &LaneState, over: Option<&Over>, most: usize) -> Vec<Payload> {
    let kind = |state: &MessageState| match state {
        MessageState::Open { .. } | MessageState::Later { .. } => PayloadKind::Waiting,
        MessageState::Parked => PayloadKind::Parked,
        MessageState::Dead | MessageState::Skipped => PayloadKind::Ended,
    };
    let held = state.messages().filter_map(|(at, id, m)| {
        m.payload.map(|(ledger, bytes)| Payload {
            since: m.since,
            at,
            id,
            ledger,
            bytes: if m.dropped { 0 } else { bytes },
            dropped: m.dropped,
            kind: kind(&m.state),
        })
    });
    let is_over = |p: &Payload| over.is_some_and(|over| over.is(p.since));
    let candidates = held.filter(|p| match p.kind {
        PayloadKind::Waiting => false,
        PayloadKind::Parked => is_over(p) && !p.dropped,
        PayloadKind::Ended => is_over(p) || !p.dropped,
    });
    let mut oldest: Vec<Payload> = Vec::new();
    for candidate in candidates {
        oldest.push(candidate);
        if oldest.len() >= 2 * most.max(1) {
            oldest.select_nth_unstable_by_key(most, Payload::age);
            oldest.truncate(most);
        }
    }
    if oldest.len() > most {
        oldest.select_nth_unstable_by_key(most, Payload::age);
        oldest.truncate(most);
    }
    oldest
}

/// What has been in its state for all of the retention. Messages know the time of their state and no more, so this goes by
/// times. Where the clock was set, what it showed lately is not old, however long ago that time was; and what it showed a
/// retention ago is, although that time is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// What came into its state at or before this time ...
    before: Time,
    /// ... or at times that clocks showed before the retention began ...
    ago: Vec<(Time, Time)>,
    /// ... unless one showed them since: from, to.
    lately: Vec<(Time, Time)>,
}

impl Over {
    /// The time at or before which a state is over, unless it was shown lately.
    pub fn before(&self) -> Time {
        self.before
    }

    /// The latest time of what may be over.
    pub fn latest(&self) -> Time {
        self.ago.iter().map(|(_, to)| *to).fold(self.before, Time::max)
    }

    /// Whether what came into its state then has been in it for all of the retention.
    pub fn is(&self, since: Time) -> bool {
        let within = |shown: &[(Time, Time)]| shown.iter().any(|(from, to)| (*from..=*to).contains(&since));
        (since <= self.before || within(&self.ago)) && !within(&self.lately)
    }
}

/// What has been in its state for all of the retention, as far as the samples can be believed. None: nothing has.
pub fn over_since(samples: &[Sampled], retention: Duration, interval: Duration) -> Option<Over> {
    if samples.is_sorted_by_key(|s| s.when) {
        return Some(Over {
            before: over(samples.iter().rev().map(|s| s.when), retention, interval)?,
            ago: Vec::new(),
            lately: Vec::new(),
        });
    }
    // The clock was set back.
    let mut times: Vec<Time> = samples.iter().map(|s| s.when).collect();
    times.sort_unstable();
    let before = over(times.into_iter().rev(), retention, interval)?;
    let passed: Vec<(Duration, Sampled)> = Passed::since(0, samples, interval).collect();
    let all = passed.last()?.0;
    let (ago, lately) = passed.split_at(passed.partition_point(|(passed, _)| all - *passed >= retention));
    Some(Over {
        before,
        ago: shown(ago, Duration::ZERO),
        // Before its first sample, and after its last one, a clock showed some more.
        lately: shown(lately, interval),
    })
}

/// What the clock of each tenure showed, by these samples, and a margin.
fn shown(samples: &[(Duration, Sampled)], margin: Duration) -> Vec<(Time, Time)> {
    let tenures = samples.chunk_by(|(_, a), (_, b)| a.tenure == b.tenure);
    let shown = |tenure: &[(Duration, Sampled)]| {
        let (from, to) = (tenure.first()?.1.when, tenure.last()?.1.when);
        Some((from.minus(margin), to.plus(margin)))
    };
    tenures.filter_map(shown).collect()
}

/// The time at or before which a retention is over, of times that fall.
fn over(mut times: impl Iterator<Item = Time>, retention: Duration, interval: Duration) -> Option<Time> {
    let most = interval.saturating_mul(2);
    let mut passed = Duration::ZERO;
    let mut later = times.next()?;
    for earlier in times {
        passed += later.since(earlier).min(most);
        if passed >= retention {
            return Some(earlier);
        }
        later = earlier;
    }
    None
}

/// Whether [`give_up`] may have something to do: asked first, since it copies nothing. Goes over no message.
pub fn is_due(state: &LaneState, over: Option<&Over>, room: u64) -> bool {
    let older = |over: &Over| {
        state
            .partitions
            .values()
            .any(|p| p.messages.may_be_older(over.latest()))
    };
    let over = over.is_some_and(older);
    over || state.payload_bytes() > room
}

/// Decides. `bytes`: of all payloads; `over`: see [`over_since`]; `room`: most bytes of payloads.
pub fn give_up(mut held: Vec<Payload>, bytes: u64, over: Option<&Over>, room: u64) -> GiveUp {
    held.sort_unstable_by_key(Payload::age);
    let mut out = GiveUp {
        bytes,
        ..GiveUp::default()
    };
    let mut left = out.bytes;
    for p in held {
        let over = over.is_some_and(|over| over.is(p.since));
        match p.kind {
            PayloadKind::Waiting => continue,
            PayloadKind::Ended if over => out.messages.push((p.at, p.id)),
            PayloadKind::Ended if left > room && !p.dropped => {
                out.payloads.push((p.at, p.id, p.ledger));
                out.for_room += 1;
            }
            PayloadKind::Parked if over && !p.dropped => out.payloads.push((p.at, p.id, p.ledger)),
            PayloadKind::Parked | PayloadKind::Ended => continue,
        }
        left -= u64::from(p.bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ledger::fold::Message;
    use crate::core::types::{RouteId, Tenure};

    const HOUR: Duration = Duration::from_secs(3_600);
    const AT: RoutePartition = RoutePartition {
        route: RouteId(1),
        partition: 0,
    };

    fn hour(n: u64) -> Time {
        Time(n * 3_600_000_000)
    }

    fn payload(n: u8, since: u64, bytes: u32, kind: PayloadKind) -> Payload {
        Payload {
            since: hour(since),
            at: AT,
            id: MessageId([n; 16]),
            ledger: n.into(),
            bytes,
            dropped: false,
            kind,
        }
    }

    fn sampled(hours: impl Iterator<Item = u64>) -> Vec<Sampled> {
        let sampled = |(n, h): (usize, u64)| Sampled {
            ledger: n as u64,
            tenure: Tenure(0),
            when: hour(h),
            end: h,
        };
        hours.enumerate().map(sampled).collect()
    }

    /// Samples of a tenure, from this ledger offset on, while its clock shows these hours.
    fn life(tenure: Offset, first: Offset, hours: std::ops::Range<u64>) -> impl Iterator<Item = Sampled> {
        hours.zip(first..).map(move |(h, ledger)| Sampled {
            ledger,
            tenure: Tenure(tenure),
            when: hour(h),
            end: ledger,
        })
    }

    #[test]
    fn time_is_believed_sample_by_sample() {
        let samples = sampled(0..100);
        let before = |samples: &[Sampled]| over_since(samples, HOUR * 24, HOUR).map(|over| over.before);
        assert_eq!(before(&samples), Some(hour(75)));
        assert_eq!(over_since(&samples, HOUR * 100, HOUR), None);
        // A jump of ten years counts as two hours.
        let jumped = sampled((0..100).chain([87_600]));
        assert_eq!(before(&jumped), Some(hour(77)));
        assert_eq!(over_since(&[], HOUR, HOUR), None);
        // So does one that was taken back.
        let back = sampled((0..50).chain([87_600]).chain(50..100));
        assert_eq!(before(&back), Some(hour(77)));
    }

    /// A boot without a battery: the clock is at 1970 for a while. What ended meanwhile is no older than what ended since.
    #[test]
    fn what_a_clock_that_was_behind_wrote_is_not_old() {
        let mut samples: Vec<Sampled> = life(1, 1, 500_000..500_100).collect();
        samples.extend(life(101, 101, 5..15));
        samples.extend(life(111, 111, 500_110..500_115));
        let over = over_since(&samples, HOUR * 24, HOUR).unwrap();
        assert!((4..=15).all(|h| !over.is(hour(h))), "{over:?}");
        assert!(over.is(hour(2)) && over.is(hour(40)) && over.is(hour(500_075)));
        assert!(!over.is(hour(500_099)) && !over.is(hour(500_112)));
        // A day later they are as old as others.
        samples.extend(life(111, 116, 500_115..500_140));
        let over = over_since(&samples, HOUR * 24, HOUR).unwrap();
        assert!((4..=15).all(|h| over.is(hour(h))), "{over:?}");
        let held = vec![payload(1, 7, 10, PayloadKind::Ended)];
        assert_eq!(give_up(held, 10, Some(&over), 1_000).messages.len(), 1);
    }

    /// A clock that was a year ahead for ten hours: what ended meanwhile goes a retention later, not in a year. What ends at
    /// those times once they come is new.
    #[test]
    fn what_a_clock_that_was_ahead_wrote_grows_old() {
        let ahead = 500_000 + 8_760;
        let mut samples: Vec<Sampled> = life(1, 1, 500_000..500_100).collect();
        samples.extend(life(101, 101, ahead..ahead + 10));
        samples.extend(life(111, 111, 500_110..500_120));
        let over = over_since(&samples, HOUR * 24, HOUR).unwrap();
        assert!((0..10).all(|h| !over.is(hour(ahead + h))), "{over:?}");
        samples.extend(life(111, 121, 500_120..500_150));
        let over = over_since(&samples, HOUR * 24, HOUR).unwrap();
        assert!((0..10).all(|h| over.is(hour(ahead + h))), "{over:?}");
        assert!(over.latest() >= hour(ahead + 9));
        assert!(!over.is(hour(ahead + 12)) && !over.is(hour(500_140)) && over.is(hour(500_090)));
        // It was ahead by thirty hours only, and is there again.
        let mut samples: Vec<Sampled> = life(1, 1, 500_000..500_100).collect();
        samples.extend(life(101, 101, 500_130..500_140));
        samples.extend(life(111, 111, 500_110..500_150));
        let over = over_since(&samples, HOUR * 24, HOUR).unwrap();
        assert!(!over.is(hour(500_135)), "{over:?}");
    }

    #[test]
    fn the_oldest_go_for_room_and_parked_and_waiting_ones_never() {
        use PayloadKind::*;
        let held = vec![
            payload(4, 4, 100, Ended),
            payload(1, 1, 100, Waiting),
            payload(2, 2, 100, Parked),
            payload(3, 3, 100, Ended),
            payload(5, 5, 100, Ended),
        ];
        let out = give_up(held.clone(), 500, None, 350);
        assert_eq!(out.payloads.iter().map(|p| p.2).collect::<Vec<_>>(), [3, 4]);
        assert_eq!((out.for_room, out.bytes, out.messages.len()), (2, 500, 0));
        let all = give_up(held.clone(), 500, None, 0);
        assert_eq!(all.payloads.iter().map(|p| p.2).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(
            give_up(held, 500, None, 500),
            GiveUp {
                bytes: 500,
                ..GiveUp::default()
            }
        );
    }

    /// Whatever is kept, one go looks at so many of the oldest, and the next go at those behind them.
    #[test]
    fn of_millions_only_the_oldest_are_listed() {
        let mut state = LaneState::default();
        let message = |n: u64, state| Message {
            state,
            key: crate::core::types::KeyHash(n),
            offset: n,
            round: 1,
            attempts: 1,
            first_try: hour(1),
            since: hour(n),
            status: 422,
            payload: Some((n, 10)),
            dropped: false,
            opened: 0,
            carried: false,
        };
        // In an order that has nothing to do with their age, every third one in doubt.
        for n in (0..1_000u64).map(|i| i * 389 % 1_000) {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            let kind = match n % 3 {
                0 => MessageState::Parked,
                _ => MessageState::Dead,
            };
            let partition = state.partitions.entry(AT).or_default();
            partition.messages.insert(MessageId(id), message(n, kind));
        }
        let listed = |over, most| {
            let mut listed: Vec<_> = payloads(&state, over, most).iter().map(|p| p.ledger).collect();
            listed.sort_unstable();
            listed
        };
        assert_eq!(listed(None, 4), [1, 2, 4, 5]);
        let over = Over {
            before: hour(4),
            ago: Vec::new(),
            lately: Vec::new(),
        };
        assert_eq!(listed(Some(&over), 4), [0, 1, 2, 3]);
        assert_eq!(listed(None, MOST).len(), 666);
        let first = payloads(&state, None, 100);
        let out = give_up(first, state.payload_bytes(), None, 9_500);
        assert_eq!((out.bytes, out.for_room, out.payloads.len()), (10_000, 50, 50));
    }

    #[test]
    fn retention_ends_what_is_dead_and_keeps_a_doubt_listed() {
        use PayloadKind::*;
        let mut held = vec![
            payload(1, 1, 10, Waiting),
            payload(2, 2, 10, Parked),
            payload(3, 3, 10, Ended),
            payload(4, 9, 10, Ended),
        ];
        let over = Over {
            before: hour(8),
            ago: Vec::new(),
            lately: Vec::new(),
        };
        let out = give_up(held.clone(), 40, Some(&over), 1_000);
        assert_eq!(out.messages, [(AT, MessageId([3; 16]))]);
        assert_eq!(out.payloads, [(AT, MessageId([2; 16]), 2)]);
        assert_eq!(out.for_room, 0);
        held[1].dropped = true;
        assert!(give_up(held, 40, Some(&over), 1_000).payloads.is_empty());
    }
}
