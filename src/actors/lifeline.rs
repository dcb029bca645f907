//! How a parent learns that a child is gone.
//!
//! actix neither reports a panic nor a dropped context. Every actor of the tree therefore holds a [`Lifeline`]:
//! when the actor is dropped, for whatever reason, the lifeline tells the parent, and whether it was in order.

use std::cell::RefCell;

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was told to stop, and did.
    Orderly,
    /// It gave up with this error.
    Failed(String),
    /// It panicked.
    Panicked,
}

type Report = Box<dyn FnOnce(End) + Send>;

/// Reports the end of the actor that holds it.
pub struct Lifeline {
    report: RefCell<Option<Report>>,
    end: RefCell<Option<End>>,
}

impl Lifeline {
    /// `report` is called once, on the thread of the actor that ended; it must only pass a message on.
    pub fn new(report: impl FnOnce(End) + Send + 'static) -> Self {
        Self {
            report: RefCell::new(Some(Box::new(report))),
            end: RefCell::new(None),
        }
    }

    /// The actor is about to stop as it was told.
    pub fn orderly(&self) {
        *self.end.borrow_mut() = Some(End::Orderly);
    }

    /// The actor is about to stop because of this error.
    pub fn failed(&self, error: impl std::fmt::Display) {
        *self.end.borrow_mut() = Some(End::Failed(error.to_string()));
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        // The runtime catches a panic before it drops the task, so `thread::panicking` says nothing here: an
        // actor that is dropped without a word has panicked.
        let end = self.end.take().unwrap_or(End::Panicked);
        if let Some(report) = self.report.take() {
            report(end);
        }
    }
}
