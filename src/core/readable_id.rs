//! The readable form of a message ID, and the way back to its hash: what operators see and type.
//!
//! ```text
//! one part        its text, as it stands in the record
//! several parts   their texts with `|` between them
//! a value's hash  the first 16 bytes of BLAKE3 of the value, hex: a part like any other
//! a position      the offset
//! ```
//! The way back is not always certain: a part may hold a `|`, or be a number. So a text has several [`meanings`],
//! each is looked for, and no two hashes meet by chance. What was cut to a bound has no way back: such a message is
//! named by its hash.

use super::message_id::IdScope;
use super::types::{MessageId, Offset};
use smallvec::SmallVec;

/// Stands between the parts.
pub const SEPARATOR: char = '|';

/// The readable form of an ID of these parts.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    match parts {
        [one] => one.to_vec(),
        many => many.join(&(SEPARATOR as u8)),
    }
}

/// The readable form of an ID by position.
pub fn of_position(offset: Offset) -> String {
    offset.to_string()
}

/// The part of an ID that is the value's hash.
pub fn of_value(value: &[u8]) -> String {
    let hash = blake3::hash(value);
    let mut out = String::with_capacity(32);
    for byte in &hash.as_bytes()[..16] {
        use std::fmt::Write;
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// What a text may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// An ID of one part.
    Whole,
    /// An ID of several parts.
    Parts,
    /// A position.
    Position,
    /// The hash itself, in hex.
    Hash,
}

/// Every hash that a text may stand for in a scope.
pub fn meanings(text: &str, scope: &IdScope) -> SmallVec<[(Meaning, MessageId); 4]> {
    let mut out = SmallVec::new();
    out.push((Meaning::Whole, scope.id(&[text.as_bytes()])));
    if text.contains(SEPARATOR) {
        let parts: Vec<&[u8]> = text.split(SEPARATOR).map(str::as_bytes).collect();
        out.push((Meaning::Parts, scope.id(&parts)));
    }
    if let Ok(offset) = text.parse() {
        out.push((Meaning::Position, scope.position(offset)));
    }
    if let Ok(hash) = text.to_ascii_lowercase().parse() {
        out.push((Meaning::Hash, hash));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::TopicId;
    use proptest::prelude::*;

    fn scope() -> IdScope {
        IdScope::new("orders", TopicId(5), 1, "acme")
    }

    fn means(text: &str, id: MessageId) -> bool {
        meanings(text, &scope()).iter().any(|(_, m)| *m == id)
    }

    #[test]
    fn positions_and_hashes_come_back() {
        assert!(means(&of_position(17), scope().position(17)));
        let id = scope().id(&[b"a-1"]);
        assert!(means(&id.to_string(), id));
        assert!(means(&id.to_string().to_uppercase(), id));
        assert_eq!(of_value(b"x").len(), 32);
    }

    proptest! {
        #[test]
        fn texts_come_back(parts in proptest::collection::vec("[^|]{0,12}", 1..5)) {
            let parts: Vec<&[u8]> = parts.iter().map(|p| p.as_bytes()).collect();
            let text = String::from_utf8(join(&parts)).unwrap();
            prop_assert!(means(&text, scope().id(&parts)));
        }

        #[test]
        fn one_part_comes_back_whatever_is_in_it(text in ".{0,40}") {
            prop_assert!(means(&text, scope().id(&[text.as_bytes()])));
        }
    }
}
