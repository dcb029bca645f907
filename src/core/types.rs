//! The vocabulary of IDs, times and places. One word, one meaning (`docs/architecture.md`, words).

use std::fmt;
use std::time::Duration;

/// A position in one partition. Offsets may have gaps.
pub type Offset = u64;

/// Microseconds since the Unix epoch. See [`crate::clock::Clock`] for what moves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The beginning of time: earlier than anything that happens.
    pub const ZERO: Time = Time(0);
    /// Later than anything that happens.
    pub const NEVER: Time = Time(u64::MAX);

    /// From whole milliseconds since the epoch.
    pub const fn from_millis(ms: u64) -> Self {
        Time(ms.saturating_mul(1_000))
    }
    /// Whole milliseconds since the epoch.
    pub const fn millis(self) -> u64 {
        self.0 / 1_000
    }
    /// Whole seconds since the epoch.
    pub const fn secs(self) -> u64 {
        self.0 / 1_000_000
    }
    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
    /// This time moved into the future; stops at [`Time::NEVER`].
    pub const fn plus(self, d: Duration) -> Time {
        let us = d.as_micros();
        Time(self.0.saturating_add(if us > u64::MAX as u128 {
            u64::MAX
        } else {
            us as u64
        }))
    }
    /// This time moved into the past; stops at zero.
    pub const fn minus(self, d: Duration) -> Time {
        let us = d.as_micros();
        Time(self.0.saturating_sub(if us > u64::MAX as u128 {
            u64::MAX
        } else {
            us as u64
        }))
    }
}

impl fmt::Display for Time {
    /// RFC 3339 with milliseconds, in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(i64::try_from(self.0).unwrap_or(i64::MAX)) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => f.write_str("never"),
        }
    }
}

/// What makes a record the same message again: a 16-byte hash with a fixed recipe
/// ([`crate::core::message_id`]), already scoped to (topic, topic incarnation, partition, partner).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    /// The first eight bytes, as a number: well mixed, for hash tables and filters.
    #[inline]
    pub fn head(&self) -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(b)
    }
    /// The last eight bytes, as a number, independent of [`MessageId::head`].
    #[inline]
    pub fn tail(&self) -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&self.0[8..]);
        u64::from_be_bytes(b)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl std::str::FromStr for MessageId {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        if s.len() != 32 || !s.is_ascii() {
            return Err(());
        }
        let mut out = [0u8; 16];
        for (i, b) in out.iter_mut().enumerate() {
            *b = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| ())?;
        }
        Ok(MessageId(out))
    }
}

/// The unit of order inside a partition, hashed. Two keys that collide only share their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyHash(pub u64);

/// One topic (incarnation) delivered to one partner, hashed: [`crate::core::message_id::route_id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RouteId(pub u64);

/// One partition of a route: what a `PartitionActor` owns and has progress of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RoutePartition {
    /// Which topic goes to which partner.
    pub route: RouteId,
    /// Which partition of that topic.
    pub partition: u32,
}

/// One incarnation of a topic: a topic deleted and made anew under its old name gets another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TopicId(pub u128);

/// One run of the process. Intents carry it, so that a restart knows whose requests are in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LifeId(pub u64);

/// One ownership of a lane: the offset of its `owner` entry. It only rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tenure(pub Offset);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_prints_as_rfc_3339() {
        assert_eq!(
            Time::from_millis(1_700_000_000_123).to_string(),
            "2023-11-14T22:13:20.123Z"
        );
        assert_eq!(Time::NEVER.plus(Duration::from_secs(1)), Time::NEVER);
    }

    #[test]
    fn an_id_survives_its_text_form() {
        let id = MessageId([7, 0, 255, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("xyz".parse::<MessageId>(), Err(()));
    }
}
