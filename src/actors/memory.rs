//! What the node holds in memory, in bytes, against its bound (I6). Shared by all arbiters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes held by one partner's routes, against its share of the node's bound. A partner that is down fills its
/// own share and nobody else's (I8).
#[derive(Debug, Clone)]
pub struct MemoryShare {
    held: Arc<AtomicU64>,
    node: Arc<AtomicU64>,
    bound: u64,
    node_bound: u64,
}

impl MemoryShare {
    /// Divides `bound` evenly over `partners` shares.
    pub fn divide(bound: u64, partners: usize) -> Vec<MemoryShare> {
        let node = Arc::new(AtomicU64::new(0));
        let share = bound / partners.max(1) as u64;
        (0..partners.max(1))
            .map(|_| MemoryShare {
                held: Arc::default(),
                node: node.clone(),
                bound: share,
                node_bound: bound,
            })
            .collect()
    }

    /// A share for what no partner holds: it counts for the node only.
    pub fn of_node(&self) -> MemoryShare {
        MemoryShare {
            held: Arc::default(),
            node: self.node.clone(),
            bound: self.node_bound,
            node_bound: self.node_bound,
        }
    }

    /// Notes bytes taken up.
    #[inline]
    pub fn take(&self, bytes: usize) {
        self.held.fetch_add(bytes as u64, Ordering::Relaxed);
        self.node.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes bytes given back.
    #[inline]
    pub fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.node.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that may still be taken up.
    pub fn room(&self) -> u64 {
        self.bound.saturating_sub(self.held.load(Ordering::Relaxed))
    }

    /// Bytes held of this share.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// This share's bound.
    pub fn bound(&self) -> u64 {
        self.bound
    }

    /// The whole node's bound.
    pub fn node_bound(&self) -> u64 {
        self.node_bound
    }

    /// Bytes held by the whole node.
    pub fn node_held(&self) -> u64 {
        self.node.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_share_leaves_the_others_theirs() {
        let shares = MemoryShare::divide(1_000, 2);
        shares[0].take(600);
        assert_eq!((shares[0].room(), shares[1].room()), (0, 500));
        shares[0].give_back(200);
        assert_eq!((shares[0].room(), shares[1].node_held()), (100, 400));
    }
}
