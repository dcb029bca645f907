//! What of a message may be shown: key and ID as text, in lists, stories and log lines alike (I9).

use super::mask::{MASK, Masker};
use super::pointer::Pointers;
use crate::config::{IdSource, KeySource};

/// Bytes as text: UTF-8 as it is, the rest as `\xNN`. Control characters but line ends and tabs, too: what a
/// record holds must not move a terminal's cursor.
pub fn text(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() && !matches!(c, '\n' | '\t') {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// The key of a message as text: the record's, or what the topic's pointer finds in the value.
pub fn key_text(source: &KeySource, record_key: Option<&[u8]>, value: &[u8]) -> Option<String> {
    match source {
        KeySource::Json(pointer) => {
            let mut found = [None];
            Pointers::compile(&[pointer])
                .ok()?
                .extract(value, &mut found)
                .ok()?;
            let [key] = found;
            key.map(|key| text(key.text.as_bytes()))
        }
        KeySource::Record => record_key.map(text),
    }
}

/// A key as it may be shown. One that comes from a field whose name is masked is hidden whole.
pub fn masked_key(source: &KeySource, key: &str, masker: &Masker) -> String {
    match source {
        KeySource::Json(pointer) if masker.hides(last_name(pointer)) => MASK.to_owned(),
        KeySource::Json(_) | KeySource::Record => masker.text(key),
    }
}

/// Whether messages whose ID has these parts are named by their hash only.
pub fn hides_id(sources: &[IdSource], masker: &Masker) -> bool {
    sources.iter().any(|source| match source {
        IdSource::Json(pointer) => masker.hides(last_name(pointer)),
        IdSource::Header(name) | IdSource::Query(name) => masker.hides(name),
        IdSource::Key | IdSource::Hash | IdSource::Position => false,
    })
}

/// A readable ID as it may be shown; none if a part of it is masked: then only the hash can name the message.
pub fn shown_id(sources: &[IdSource], readable: &[u8], masker: &Masker) -> Option<String> {
    let text = text(readable);
    (!text.is_empty() && !hides_id(sources, masker) && masker.text(&text) == text).then_some(text)
}

/// The name of the field that a JSON pointer ends at.
pub(super) fn last_name(pointer: &str) -> &str {
    pointer.rsplit('/').next().unwrap_or(pointer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_records_or_a_fields() {
        let value = br#"{"user":{"email":"a@example.com","n":7,"none":null}}"#;
        let json = |pointer: &str| key_text(&KeySource::Json(pointer.into()), Some(b"k"), value);
        assert_eq!(json("/user/n").as_deref(), Some("7"));
        assert_eq!(json("/user/none"), None);
        assert_eq!(json("/nothing"), None);
        assert_eq!(
            key_text(&KeySource::Record, Some(b"k\x1b\xff"), value).as_deref(),
            Some("k\\x1b\\xff")
        );
    }

    #[test]
    fn what_is_masked_is_no_key_and_no_id() {
        let masker = Masker::new(&["crm_id".to_owned()], &["s3cret-token".into()]);
        let by = |pointer: &str| KeySource::Json(pointer.into());
        assert_eq!(masked_key(&by("/user/crm_id"), "17", &masker), MASK);
        assert_eq!(masked_key(&by("/user/id"), "17", &masker), "17");
        assert_eq!(masked_key(&KeySource::Record, "a@example.com", &masker), MASK);

        let id = |source, text: &str| shown_id(&[IdSource::Position, source], text.as_bytes(), &masker);
        assert_eq!(id(IdSource::Json("/id".into()), "17").as_deref(), Some("17"));
        assert_eq!(id(IdSource::Json("/user/crm_id".into()), "17"), None);
        assert_eq!(id(IdSource::Query("crm_id".into()), "17"), None);
        assert_eq!(id(IdSource::Header("x-id".into()), "s3cret-token"), None);
        assert_eq!(id(IdSource::Key, "a@example.com"), None);
        assert_eq!(id(IdSource::Key, ""), None, "a message whose ID was not kept");
    }
}
