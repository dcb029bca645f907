//! At most `count` starts in any window of one length, wherever the window is laid (I5).

use crate::core::types::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// For how long a slot of this window is valid: long enough for a thread to come round and write, and one part in 250
/// of the window at most.
pub(super) fn validity(window: Duration) -> Duration {
    (window / 250).clamp(LEAST_VALIDITY, super::VALIDITY)
}

/// A slot shorter than this would be missed more often than met.
const LEAST_VALIDITY: Duration = Duration::from_micros(500);

/// What lies between a slot and the partner's own reading of its clock: the time for which a slot is valid, and the
/// margin for a way there that takes unequal time. A short window gives at most a tenth of itself for the margin.
pub(super) fn guard(window: Duration, margin: Duration) -> Duration {
    validity(window) + margin.min(window / 10)
}

/// The starts of one window, newest last.
///
/// Up to `resolution` starts (2,048 and more, see [`super::Limiter`]) are kept one by one. Of more, up to `quantum` make one bucket that counts as a
/// whole at the time of its last start: never too early, and at most the time of one bucket too late.
#[derive(Clone, Debug)]
pub(super) struct SlidingWindow {
    pub(super) count: u64,
    /// Length and guard: two slots closer than this may fall into one window at the partner.
    span: Duration,
    quantum: u64,
    /// A bucket holds starts of at most so long a time.
    bucket_span: Duration,
    buckets: VecDeque<Bucket>,
    /// First start of the newest bucket.
    newest_since: Time,
    total: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    last: Time,
    starts: u64,
}

impl SlidingWindow {
    /// `resolution`: up to twice so many starts are kept one by one; else it is the number of buckets in a full
    /// window, and 1 / `resolution` is the greatest loss of use. `span`: length of the window and guard.
    pub(super) fn new(count: u64, span: Duration, resolution: u64) -> Self {
        let quantum = if count <= 2 * resolution {
            1
        } else {
            count / resolution
        };
        Self {
            count: count.max(1),
            span,
            quantum,
            bucket_span: if quantum == 1 {
                Duration::ZERO
            } else {
                span / (2 * resolution as u32)
            },
            buckets: VecDeque::new(),
            newest_since: Time::ZERO,
            total: 0,
        }
    }

    pub(super) fn span(&self) -> Duration {
        self.span
    }

    /// Whether the newest start is out of every window that reaches to `now`.
    pub(super) fn is_idle(&self, now: Time) -> bool {
        self.buckets.back().is_none_or(|b| b.last.plus(self.span) <= now)
    }

    /// The earliest slot not before `from`; `from` is not before the last slot taken.
    #[inline]
    pub(super) fn earliest(&self, from: Time) -> Time {
        if self.total < self.count {
            return from;
        }
        // So many of the oldest must be out of the window.
        let mut must_go = self.total - self.count + 1;
        for bucket in &self.buckets {
            if bucket.starts >= must_go {
                return from.max(bucket.last.plus(self.span));
            }
            must_go -= bucket.starts;
        }
        from
    }

    /// Notes starts at a slot that is not before the last one.
    #[inline]
    pub(super) fn take(&mut self, slot: Time, starts: u64) {
        self.total += starts;
        let fits = self.quantum > 1
            && slot.since(self.newest_since) <= self.bucket_span
            && self
                .buckets
                .back()
                .is_some_and(|b| b.starts + starts <= self.quantum);
        match self.buckets.back_mut() {
            Some(newest) if fits || newest.last == slot => {
                newest.last = slot;
                newest.starts += starts;
            }
            _ => {
                self.newest_since = slot;
                self.buckets.push_back(Bucket { last: slot, starts });
            }
        }
        // Only what is out of the window is forgotten, not what is more than `count`: after a limit was lowered
        // and raised again it still counts.
        while let Some(oldest) = self.buckets.front() {
            if oldest.last.plus(self.span) > slot {
                break;
            }
            self.total -= oldest.starts;
            self.buckets.pop_front();
        }
        if self.buckets.capacity() > 64 && self.buckets.len() < self.buckets.capacity() / 8 {
            self.buckets.shrink_to(self.buckets.len() * 2);
        }
    }

    /// A start at this slot was not made.
    pub(super) fn give_back(&mut self, slot: Time) {
        if self
            .buckets
            .back()
            .is_some_and(|b| b.last >= slot.plus(self.span))
        {
            // It counts no more: what is found behind it are others.
            return;
        }
        // A bucket counts at its last start.
        let at = self.buckets.partition_point(|bucket| bucket.last < slot);
        if let Some(bucket) = self.buckets.get_mut(at) {
            bucket.starts -= 1;
            self.total -= 1;
            if bucket.starts == 0 {
                self.buckets.remove(at);
            }
        }
    }

    /// Puts starts that came before all that is known in front of them. `older` is rising.
    pub(super) fn prepend(&mut self, older: &[(Time, u64)]) {
        let first = self.buckets.front().map_or(Time::NEVER, |b| b.last);
        self.merge(&older[..older.partition_point(|&(at, _)| at < first)]);
    }

    /// Adds starts that are not known yet, wherever they lie. `others` is rising.
    pub(super) fn merge(&mut self, others: &[(Time, u64)]) {
        let known = std::mem::take(&mut self.buckets);
        self.total = 0;
        let mut others = others.iter().copied().peekable();
        for bucket in known {
            while let Some((at, starts)) = others.next_if(|&(at, _)| at <= bucket.last) {
                self.take(at, starts);
            }
            self.take(bucket.last, bucket.starts);
        }
        others.for_each(|(at, starts)| self.take(at, starts));
    }

    /// The same starts under another count or length. A longer window than this one knows less than it should.
    pub(super) fn changed(&self, count: u64, span: Duration, resolution: u64) -> Self {
        let mut new = Self::new(count, span, resolution);
        for bucket in &self.buckets {
            new.take(bucket.last, bucket.starts);
        }
        new
    }

    /// Bytes on the heap that a window of so many starts comes to.
    pub(super) fn most_memory(count: u64, resolution: u64) -> usize {
        let buckets = count.min(2 * resolution) as usize + 2;
        buckets.next_power_of_two() * size_of::<Bucket>()
    }

    /// Bytes held on the heap.
    pub(super) fn memory(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }
}
