//! A record as it stands in a topic, and its headers.

use super::types::{Offset, Time};
use bytes::{BufMut, Bytes, BytesMut};

/// Key, value, headers and timestamp at an offset of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Where it stands in its partition.
    pub offset: Offset,
    /// When it was appended (embedded log) or what the broker says.
    pub timestamp: Time,
    /// The record's key, if it has one.
    pub key: Option<Bytes>,
    /// The record's value; may be empty.
    pub value: Bytes,
    /// Headers, still encoded: most records have none, and most headers are never looked at.
    pub headers: Headers,
}

impl Record {
    /// Bytes this record holds in memory, bookkeeping of the struct itself not included (I6).
    pub fn held_bytes(&self) -> usize {
        self.value.len() + self.key.as_ref().map_or(0, Bytes::len) + self.headers.0.len()
    }
}

/// Headers in their encoded form: for each, name length (u16 LE), value length (u32 LE), name, value.
/// The same form stands in the embedded log; never change it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Bytes);

/// Header under which an import says where a line came from: `file:line`.
pub const SOURCE_HEADER: &str = "sluicegate-source";

/// Header under which an import gives a line without a message ID one: `hash:line`, the first 32 hex digits of the
/// content's blake3 and the line's number. Where the topic goes by position no line needs one.
pub const IMPORT_ID_HEADER: &str = "sluicegate-import-id";

impl Headers {
    /// No headers.
    pub const fn none() -> Self {
        Headers(Bytes::new())
    }

    /// Encodes names and values. Names longer than 64 KiB are cut to that.
    pub fn encode<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut out = BytesMut::new();
        for (name, value) in pairs {
            let name = &name.as_bytes()[..name.len().min(usize::from(u16::MAX))];
            out.put_u16_le(name.len() as u16);
            out.put_u32_le(value.len() as u32);
            out.put_slice(name);
            out.put_slice(value);
        }
        Headers(out.freeze())
    }

    /// Names and values in order. Ends early, without a panic, where the bytes are damaged.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (head, tail) = rest.split_at_checked(6)?;
            let name_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
            let value_len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
            let (name, tail) = tail.split_at_checked(name_len)?;
            let (value, tail) = tail.split_at_checked(value_len)?;
            rest = tail;
            Some((name, value))
        })
    }

    /// The first value under this name; names compare without regard to ASCII case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, v)| v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_damage_does_not_panic() {
        let headers = Headers::encode([("A", &b"1"[..]), ("Trace", b"xyz")]);
        assert_eq!(headers.get("trace"), Some(&b"xyz"[..]));
        assert_eq!(headers.iter().count(), 2);
        let cut = Headers(headers.0.slice(..headers.0.len() - 1));
        assert_eq!(cut.iter().count(), 1);
    }
}
