//! What makes a record the same message again, and every other hash that stands in the ledger: fixed recipes.
//! **Never change**: whatever they gave once is in a ledger somewhere; another result would send messages twice.
//! [`RECIPE`] stands in each lane's genesis, a node with another one stops.
//!
//! ```text
//! parts       for each part: its length as u32 LE, then its bytes: no part can look like two, whatever is in it
//! derive(c)   BLAKE3 in its derive-key mode with context c
//!
//! scope       derive("sluicegate 1 message id") of parts topic, topic ID (16 bytes LE), partition (u32 LE), partner
//! message ID  the first 16 bytes of BLAKE3 keyed with the scope, over
//!             1 | parts         for IDs read from a record (header, pointer, key, value …)
//!             2 | offset u64 LE for IDs by position: they name the incarnation through their scope
//! route       the first 8 bytes, LE, of derive("sluicegate 1 route") of parts topic, topic ID, partner
//! budget      … of derive("sluicegate 1 budget") of the part name
//! by          … of derive("sluicegate 1 budget by") of the part value; 1 where that is 0 (0: not split)
//! key         … of BLAKE3 of the key's bytes
//! lane        (… of derive("sluicegate 1 lane") of the part topic + 23 · partition) mod the number of lanes
//! ```
//! A message ID is scoped: the same text in another topic, incarnation, partition or to another partner is another
//! message. IDs reveal nothing of what they were made from to whom does not know it (I9).

use super::types::{KeyHash, MessageId, Offset, RouteId, TopicId};
use smallvec::SmallVec;

/// Version of all recipes of this module, as it stands in the genesis of a ledger.
pub const RECIPE: u32 = 1;

/// From here on parts are hashed one after the other instead of being put together first.
const PUT_TOGETHER: usize = 1_024;

fn put(out: &mut SmallVec<[u8; 128]>, part: &[u8]) {
    out.extend_from_slice(&length(part));
    out.extend_from_slice(part);
}

/// A part is a field of a record: far below 4 GiB.
fn length(part: &[u8]) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn derive(context: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut material = SmallVec::new();
    parts.iter().for_each(|part| put(&mut material, part));
    blake3::derive_key(context, &material)
}

fn first_8(hash: &[u8; 32]) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(b)
}

fn first_16(hash: &[u8; 32]) -> MessageId {
    let mut b = [0; 16];
    b.copy_from_slice(&hash[..16]);
    MessageId(b)
}

/// The hash by which the ledger names one topic (incarnation) delivered to one partner.
pub fn route_id(topic: &str, topic_id: TopicId, partner: &str) -> RouteId {
    let parts: [&[u8]; 3] = [topic.as_bytes(), &topic_id.0.to_le_bytes(), partner.as_bytes()];
    RouteId(first_8(&derive("sluicegate 1 route", &parts)))
}

/// The hash by which the ledger names a budget.
pub fn budget_id(name: &str) -> u64 {
    first_8(&derive("sluicegate 1 budget", &[name.as_bytes()]))
}

/// The hash of the value by which a budget is split; never zero, which stands for "not split".
pub fn budget_by(value: &[u8]) -> u64 {
    first_8(&derive("sluicegate 1 budget by", &[value])).max(1)
}

/// The hash of a key: the unit of order inside a partition.
#[inline]
pub fn key_hash(key: &[u8]) -> KeyHash {
    KeyHash(first_8(blake3::hash(key).as_bytes()))
}

/// The lane of a topic's partition. The stride of 23 spreads neighbours over nodes, which own runs of lanes.
pub fn lane_of(topic: &str, partition: u32, lanes: u32) -> u32 {
    let hash = first_8(&derive("sluicegate 1 lane", &[topic.as_bytes()]));
    let lanes = u128::from(lanes.max(1));
    ((u128::from(hash) + 23 * u128::from(partition)) % lanes) as u32
}

/// Where message IDs are remembered: one topic (incarnation), partition and partner. Made once, used for each
/// record: a short ID costs one compression.
#[derive(Clone)]
pub struct IdScope {
    key: [u8; 32],
}

impl IdScope {
    /// The scope of a route's partition.
    pub fn new(topic: &str, topic_id: TopicId, partition: u32, partner: &str) -> Self {
        let parts: [&[u8]; 4] = [
            topic.as_bytes(),
            &topic_id.0.to_le_bytes(),
            &partition.to_le_bytes(),
            partner.as_bytes(),
        ];
        Self {
            key: derive("sluicegate 1 message id", &parts),
        }
    }

    /// The ID of a message whose readable ID has these parts.
    #[inline]
    pub fn id(&self, parts: &[&[u8]]) -> MessageId {
        let bytes: usize = parts.iter().map(|p| p.len() + 4).sum();
        if bytes >= PUT_TOGETHER {
            let mut hasher = blake3::Hasher::new_keyed(&self.key);
            hasher.update(&[1]);
            for part in parts {
                hasher.update(&length(part)).update(part);
            }
            return first_16(hasher.finalize().as_bytes());
        }
        let mut input = SmallVec::new();
        input.push(1);
        parts.iter().for_each(|part| put(&mut input, part));
        first_16(blake3::keyed_hash(&self.key, &input).as_bytes())
    }

    /// The ID of a message that is told apart by its position alone.
    #[inline]
    pub fn position(&self, offset: Offset) -> MessageId {
        let mut input = [2; 9];
        input[1..].copy_from_slice(&offset.to_le_bytes());
        first_16(blake3::keyed_hash(&self.key, &input).as_bytes())
    }
}

impl std::fmt::Debug for IdScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdScope")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scope() -> IdScope {
        IdScope::new("acme-requests", TopicId(7), 3, "acme")
    }

    #[test]
    fn every_recipe_gives_what_it_always_gave() {
        let got = [
            scope().id(&[b"order-1"]).to_string(),
            scope().id(&[b"order", b"1"]).to_string(),
            scope().id(&[&[b'x'; 5_000]]).to_string(),
            scope().position(42).to_string(),
            format!("{:016x}", route_id("acme-requests", TopicId(7), "acme").0),
            format!("{:016x}", budget_id("acme-account")),
            format!("{:016x}", budget_by(b"app-1")),
            format!("{:016x}", key_hash(b"user-1").0),
        ];
        assert_eq!(
            got,
            [
                "d03741010fe0b0168bc4d91ee37716e3",
                "0fbe8b0bdd70e999d775ce304133379e",
                "a1fc6f1c4fce7e02bc1ce98138cd43fe",
                "1470a44c589e204d8815e41385e6a01c",
                "9f0d7e6656893cdf",
                "d54c39fc89aa974e",
                "6a99315e40fdcfc4",
                "582652fd0524859d",
            ]
        );
        let lanes: Vec<u32> = (0..4).map(|p| lane_of("acme-requests", p, 32)).collect();
        assert_eq!(lanes, [4, 27, 18, 9]);
    }

    #[test]
    fn short_and_long_inputs_follow_one_recipe() {
        // By hand, from the drawing in the header.
        for n in [0usize, 20, 1_019, 1_020, 1_021, 70_000] {
            let part = vec![b'v'; n];
            let mut input = vec![1];
            input.extend_from_slice(&(n as u32).to_le_bytes());
            input.extend_from_slice(&part);
            let hash = blake3::keyed_hash(&scope().key, &input);
            assert_eq!(scope().id(&[&part]).0, hash.as_bytes()[..16]);
        }
    }

    #[test]
    fn every_part_of_a_scope_tells_messages_apart() {
        let ids = [
            scope(),
            IdScope::new("acme-request", TopicId(7), 3, "acme"),
            IdScope::new("acme-requests", TopicId(8), 3, "acme"),
            IdScope::new("acme-requests", TopicId(7), 4, "acme"),
            IdScope::new("acme-requests", TopicId(7), 3, "acme2"),
        ];
        let both = ids.iter().flat_map(|s| [s.id(&[b"1"]), s.position(1)]);
        assert_eq!(both.collect::<std::collections::BTreeSet<_>>().len(), 10);
    }

    #[test]
    fn lanes_of_neighbours_differ() {
        let lanes: std::collections::BTreeSet<u32> = (0..32).map(|p| lane_of("t", p, 32)).collect();
        assert_eq!(lanes.len(), 32);
        assert_eq!(lane_of("t", 9, 1), 0);
    }

    proptest! {
        #[test]
        fn parts_never_run_into_each_other(a: Vec<Vec<u8>>, b: Vec<Vec<u8>>) {
            let slices = |v: &'_ [Vec<u8>]| scope().id(&v.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(slices(&a) == slices(&b), a == b);
            let joined = vec![a.concat()];
            prop_assert_eq!(slices(&joined) == slices(&a), a.len() == 1);
        }
    }

    /// Printed by `cargo test --profile quick message_id::tests::speed -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        const N: u32 = 2_000_000;
        let scope = scope();
        let began = std::time::Instant::now();
        for _ in 0..N {
            std::hint::black_box(scope.id(&[std::hint::black_box(b"order-0123456789-abc")]));
        }
        println!("id of 20 bytes {:?}", began.elapsed() / N);
        let began = std::time::Instant::now();
        for _ in 0..N {
            std::hint::black_box(key_hash(std::hint::black_box(b"user-0123456789")));
        }
        println!("key hash {:?}", began.elapsed() / N);
    }
}
