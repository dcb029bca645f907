//! A set of lines that take turns: first by queue, then by line inside the queue.

use crate::core::limiter::HashedMap;
use std::collections::VecDeque;

/// Lines by queue. The queue in front is next, with its line in front.
#[derive(Debug, Default)]
pub(super) struct FairSet {
    order: VecDeque<u32>,
    lines: HashedMap<u32, VecDeque<u32>>,
}

impl FairSet {
    /// Adds a line behind those of its queue; a queue that had none goes behind all others.
    pub(super) fn push(&mut self, queue: u32, line: u32) {
        let lines = self.lines.entry(queue).or_default();
        if lines.is_empty() {
            self.order.push_back(queue);
        }
        lines.push_back(line);
    }

    /// Takes the next line out; its queue goes behind the others.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let queue = self.order.pop_front()?;
        let lines = self.lines.get_mut(&queue)?;
        let line = lines.pop_front();
        if lines.is_empty() {
            self.lines.remove(&queue);
        } else {
            self.order.push_back(queue);
        }
        line
    }

    /// Takes the next line out; its queue stays in front: this was not its turn.
    pub(super) fn pop_unserved(&mut self) -> Option<u32> {
        let queue = *self.order.front()?;
        let lines = self.lines.get_mut(&queue)?;
        let line = lines.pop_front();
        if lines.is_empty() {
            self.lines.remove(&queue);
            self.order.pop_front();
        }
        line
    }

    /// The next line.
    pub(super) fn front(&self) -> Option<u32> {
        self.lines.get(self.order.front()?)?.front().copied()
    }

    /// Puts a line back that was popped without being served: it is next again.
    pub(super) fn put_back(&mut self, queue: u32, line: u32) {
        self.lines.entry(queue).or_default().push_front(line);
        if self.order.front() != Some(&queue) {
            self.order.retain(|&q| q != queue);
            self.order.push_front(queue);
        }
    }
}
