//! What the node holds in memory, in bytes, against its bound (I6). Shared by all arbiters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the node holds for long beside messages on their way, and every share gives its part for.
#[derive(Debug, Default)]
pub struct Books {
    /// The ledger's fold: kept, waiting and open messages, positions, ranges, samples, starts.
    ledger: AtomicU64,
    /// Filters of the store of finished IDs.
    store: AtomicU64,
    /// Where the log's records are.
    log: AtomicU64,
    /// Messages of the fold alone.
    messages: AtomicU64,
    /// What partitions keep of messages that rest in the ledger, to wake them.
    rested: AtomicU64,
    /// What partitions keep of keys that parked messages hold, and of what earlier lives left.
    beside: AtomicU64,
    /// The values of budgets with `by`: bytes, how many have a budget of their own, how many budgets are shared. No
    /// share gives its part for them: they have a part of the bound that is theirs.
    budgets: [AtomicU64; 3],
}

impl Books {
    /// Bytes of the fold, of its messages alone, and of the store's filters.
    pub fn set(&self, ledger: u64, messages: u64, store: u64) {
        self.ledger.store(ledger, Ordering::Relaxed);
        self.messages.store(messages, Ordering::Relaxed);
        self.store.store(store, Ordering::Relaxed);
    }

    /// Bytes of the fold, and of what partitions keep of its messages: to wake those that rest, of keys that are held.
    pub fn ledger(&self) -> u64 {
        let of_partitions = self.rested.load(Ordering::Relaxed) + self.beside.load(Ordering::Relaxed);
        self.ledger.load(Ordering::Relaxed) + of_partitions
    }

    fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed) + self.rested.load(Ordering::Relaxed)
    }

    /// Bytes of the store's filters.
    pub fn store(&self) -> u64 {
        self.store.load(Ordering::Relaxed)
    }

    /// Notes the bytes by which the log knows where its records are.
    pub fn set_log(&self, bytes: u64) {
        self.log.store(bytes, Ordering::Relaxed);
    }

    /// Bytes by which the log knows where its records are.
    pub fn log(&self) -> u64 {
        self.log.load(Ordering::Relaxed)
    }

    /// What one thread's values of budgets come to now instead of before: bytes, budgets of their own, shared ones.
    pub fn change_budgets(&self, before: [u64; 3], now: [u64; 3]) {
        for ((sum, before), now) in self.budgets.iter().zip(before).zip(now) {
            // Wraps round and back: threads come in any order.
            sum.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Bytes of the values of budgets, how many have a budget of their own, and how many budgets are shared.
    pub fn budgets(&self) -> [u64; 3] {
        [0, 1, 2].map(|i: usize| self.budgets[i].load(Ordering::Relaxed))
    }

    /// Bytes of fold, store and log.
    pub fn total(&self) -> u64 {
        self.ledger() + self.store() + self.log()
    }
}

/// So much of the node's bound may be taken by messages of the fold, in sixteenths: the rest is for those on their way.
const MESSAGES_MOST: u64 = 15;
/// What wakes one partner's messages that rest in the ledger may take such a part of its share, or such a part of the
/// node's bound. The messages themselves take some three times as much in the fold.
const REST_OF_SHARE: u64 = 4;
const REST_OF_NODE: u64 = 32;

/// Bytes held by one partner's routes, against its share of the node's bound. A partner that is down fills its
/// own share and nobody else's (I8).
#[derive(Debug, Clone)]
pub struct MemoryShare {
    held: Arc<AtomicU64>,
    node: Arc<AtomicU64>,
    books: Arc<Books>,
    /// Bytes of this partner's messages in the fold.
    kept: Arc<AtomicU64>,
    /// Its part of [`Books::rested`].
    rested: Arc<AtomicU64>,
    bound: u64,
    node_bound: u64,
}

impl MemoryShare {
    /// Divides `bound` evenly over `partners` shares.
    pub fn divide(bound: u64, partners: usize) -> Vec<MemoryShare> {
        Self::divide_beside(bound, 0, partners)
    }

    /// The same, but for a part of the bound that is for something else.
    pub fn divide_beside(bound: u64, other: u64, partners: usize) -> Vec<MemoryShare> {
        let (node, books) = (Arc::new(AtomicU64::new(0)), Arc::new(Books::default()));
        let share = bound.saturating_sub(other) / partners.max(1) as u64;
        (0..partners.max(1))
            .map(|_| MemoryShare {
                held: Arc::default(),
                node: node.clone(),
                books: books.clone(),
                kept: Arc::default(),
                rested: Arc::default(),
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
            books: self.books.clone(),
            kept: Arc::default(),
            rested: Arc::default(),
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
        self.bound().saturating_sub(self.held.load(Ordering::Relaxed))
    }

    /// What the node holds beside messages on their way.
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// Notes how many bytes the fold takes for this partner's messages.
    pub fn set_kept(&self, bytes: u64) {
        self.kept.store(bytes, Ordering::Relaxed);
    }

    /// Notes what a partition keeps to wake messages that rest in the ledger: so many bytes now instead of before.
    pub fn rest(&self, before: usize, now: usize) {
        // Wraps round and back: partitions come in any order.
        let change = (now as u64).wrapping_sub(before as u64);
        self.rested.fetch_add(change, Ordering::Relaxed);
        self.books.rested.fetch_add(change, Ordering::Relaxed);
    }

    /// Notes what a partition keeps of keys that are held, and of what earlier lives left: so many bytes now instead of
    /// before. It grows by nothing that reading could be kept from.
    pub fn keep_beside(&self, before: usize, now: usize) {
        let change = (now as u64).wrapping_sub(before as u64);
        self.books.beside.fetch_add(change, Ordering::Relaxed);
    }

    /// Whether more of this partner's messages may rest in the ledger. If not they stay in its share, and the intake
    /// pauses when that is full.
    pub fn may_rest(&self) -> bool {
        let most = (self.bound / REST_OF_SHARE).max(self.node_bound / REST_OF_NODE);
        self.rested.load(Ordering::Relaxed) < most && !self.is_full_of_kept()
    }

    /// Whether messages that the ledger keeps (dead, parked, skipped, waiting there) have filled the node's memory, and
    /// this partner has more than its part of them: it takes nothing up until some of them are gone. The others go on.
    pub fn is_full_of_kept(&self) -> bool {
        self.has_kept(MESSAGES_MOST)
    }

    /// Whether such messages have filled half of the node's memory, and this partner has more than its part of them:
    /// what a rule skips from then on is remembered, and not listed.
    pub fn is_half_full_of_kept(&self) -> bool {
        self.has_kept(8)
    }

    fn has_kept(&self, sixteenths: u64) -> bool {
        let most = |bound: u64| bound / 16 * sixteenths;
        let kept = self.kept.load(Ordering::Relaxed) + self.rested.load(Ordering::Relaxed);
        self.books.messages() >= most(self.node_bound) && kept > most(self.bound)
    }

    /// Bytes held of this share.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// This share's bound: its part of what the node's books leave.
    pub fn bound(&self) -> u64 {
        let part =
            u128::from(self.books.total()) * u128::from(self.bound) / u128::from(self.node_bound.max(1));
        self.bound.saturating_sub(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// The whole node's bound.
    pub fn node_bound(&self) -> u64 {
        self.node_bound
    }

    /// Bytes held by the whole node.
    pub fn node_held(&self) -> u64 {
        self.node_messages() + self.books.total() + self.books.budgets()[0]
    }

    /// Bytes held by messages on their way, of all partners.
    pub fn node_messages(&self) -> u64 {
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

    #[test]
    fn what_the_books_hold_is_taken_from_every_share() {
        let shares = MemoryShare::divide(1_000, 2);
        shares[0].take(100);
        shares[1].books().set(400, 300, 200);
        assert_eq!((shares[0].room(), shares[1].room()), (100, 200));
        assert_eq!((shares[0].node_held(), shares[0].node_messages()), (700, 100));
        shares[0].books().set_log(200);
        assert_eq!((shares[0].room(), shares[1].bound()), (0, 100));
        shares[0].books().set(5_000, 0, 0);
        assert_eq!((shares[0].room(), shares[1].bound()), (0, 0));
    }

    #[test]
    fn who_fills_the_memory_with_kept_messages_stands_and_the_others_go_on() {
        let shares = MemoryShare::divide(1_600, 2);
        shares[0].set_kept(1_400);
        shares[1].set_kept(90);
        shares[0].books().set(1_490, 1_490, 0);
        assert!(!shares[0].is_full_of_kept() && !shares[1].is_full_of_kept());
        assert!(shares[0].is_half_full_of_kept() && !shares[1].is_half_full_of_kept());
        shares[0].set_kept(1_410);
        shares[0].books().set(1_500, 1_500, 0);
        assert!(shares[0].is_full_of_kept() && !shares[1].is_full_of_kept());
    }

    #[test]
    fn messages_that_rest_count_as_kept_up_to_a_part_of_the_node() {
        let shares = MemoryShare::divide(32 << 20, 500);
        shares[0].rest(0, (1 << 20) - 1);
        assert!(shares[0].may_rest() && shares[1].may_rest());
        assert_eq!(shares[1].books().ledger(), (1 << 20) - 1);
        shares[0].rest(0, 1);
        assert!(!shares[0].may_rest() && shares[1].may_rest());
        shares[0].rest(1 << 20, 100);
        assert!(shares[0].may_rest());
        assert_eq!((shares[0].books().ledger(), shares[0].node_held()), (100, 100));
        // What they take together with other kept messages has the same end.
        shares[1].books().set(30 << 20, (30 << 20) - 100, 0);
        assert!(!shares[0].is_full_of_kept());
        shares[0].set_kept(66 << 10);
        assert!(shares[0].is_full_of_kept() && !shares[0].may_rest() && shares[1].may_rest());
    }
}
