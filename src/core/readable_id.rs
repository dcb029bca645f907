//! The readable form of a message ID, and the way back to its hash: what operators see and type.
//!
//! ```text
//! one part        its text, as it stands in the record
//! several parts   their texts with `|` between them; a `|` or `\` within a part has a `\` before it
//! a value's hash  the first 16 bytes of BLAKE3 of the value, hex: a part like any other
//! a position      the offset; where texts are IDs too, lists show it as `@17`
//! ```
//! Two IDs of one topic never look the same. The way back is not always certain, since a text of one part may hold a
//! `|`, or be a number, and older ledgers hold parts without the `\`. So a text has several [`meanings`], each is
//! looked for, and no two hashes meet by chance. What was cut to a bound has no way back: such a message is named by
//! its hash.

use super::message_id::IdScope;
use super::types::{MessageId, Offset};
use smallvec::SmallVec;

/// Stands between the parts.
pub const SEPARATOR: char = '|';

/// The readable form of an ID of these parts.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    match parts {
        [one] => one.to_vec(),
        many if many
            .iter()
            .all(|part| memchr::memchr2(b'|', b'\\', part).is_none()) =>
        {
            many.join(&(SEPARATOR as u8))
        }
        many => {
            let mut out = Vec::new();
            for (i, part) in many.iter().enumerate() {
                if i > 0 {
                    out.push(SEPARATOR as u8);
                }
                for byte in *part {
                    if matches!(byte, b'|' | b'\\') {
                        out.push(b'\\');
                    }
                    out.push(*byte);
                }
            }
            out
        }
    }
}

/// The parts of a joined ID, the way back from [`join`].
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let last = parts.last_mut().expect("one to begin with");
        match c {
            SEPARATOR => parts.push(String::new()),
            '\\' => match chars.next() {
                Some(escaped @ ('|' | '\\')) => last.push(escaped),
                other => {
                    last.push('\\');
                    last.extend(other);
                }
            },
            c => last.push(c),
        }
    }
    parts
}

/// A position beside IDs that are texts, where the offset alone could be one of them.
pub fn marked_position(offset: Offset) -> String {
    format!("@{offset}")
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
        let parts = split(text);
        let bytes: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
        out.push((Meaning::Parts, scope.id(&bytes)));
        if text.contains('\\') {
            // As ledgers hold it that were written before parts were marked.
            let parts: Vec<&[u8]> = text.split(SEPARATOR).map(str::as_bytes).collect();
            out.push((Meaning::Parts, scope.id(&parts)));
        }
    }
    if let Ok(offset) = text.strip_prefix('@').unwrap_or(text).parse() {
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
        assert!(means(&marked_position(17), scope().position(17)));
        assert_eq!(of_value(b"x").len(), 32);
    }

    /// `x|y` with `z` and `x` with `y|z` are two messages: they look different, and each is found by what is shown.
    #[test]
    fn joined_ids_look_different_and_are_found() {
        let ids: [&[&[u8]]; 5] = [
            &[b"x|y", b"z"],
            &[b"x", b"y|z"],
            &[b"x", b"y", b"z"],
            &[b"x\\|y", b"z"],
            &[b"x\\", b"y|z"],
        ];
        let shown: std::collections::BTreeSet<_> = ids.iter().map(|parts| join(parts)).collect();
        assert_eq!(shown.len(), ids.len());
        for parts in ids {
            let text = String::from_utf8(join(parts)).unwrap();
            assert!(means(&text, scope().id(parts)), "{text}");
        }
        assert_eq!(join(&[b"a", b"1"]), b"a|1", "as it always was");
    }

    proptest! {
        #[test]
        fn texts_come_back(parts in proptest::collection::vec("[a-c|\\\\é]{0,6}", 2..5)) {
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
