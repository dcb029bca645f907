//! The body of an answer, made fit to be read: unpacked, in UTF-8, and how much of it can be trusted. Pure.
//!
//! Nobody asked for a compressed answer (`accept-encoding: identity` is sent), and some send one all the same. What
//! is unpacked is bounded as what is read: a small answer must not become a large one (I6).

use super::connection::BodyEnd;
use crate::core::expr::Legible;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName};
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::io::Read;

/// A body as rules and reasons read it.
#[derive(Debug, PartialEq)]
pub(super) struct Text<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) legible: Legible,
    /// Why it is not JSON from beginning to end.
    pub(super) why: Cow<'static, str>,
}

/// Makes a body readable. `limit`: most bytes it may be unpacked to. `json`: whether it matters if it is JSON.
pub(super) fn read<'a>(
    headers: &HeaderMap,
    body: &'a [u8],
    end: BodyEnd,
    limit: usize,
    json: bool,
) -> Text<'a> {
    let mut begun = (end == BodyEnd::Limited).then_some(Cow::Borrowed("longer than answer_limit"));
    let unreadable = |bytes, why: Cow<'static, str>| Text {
        bytes,
        legible: Legible::Not,
        why,
    };
    let mut bytes = Cow::Borrowed(body);
    for coding in codings(headers).iter().rev() {
        match unpack(coding, &bytes, limit) {
            Unpacked::Plain => {}
            Unpacked::Whole(plain) => bytes = Cow::Owned(plain),
            // Of a body that was not read to its end no more can be expected.
            Unpacked::Begun(plain, true) => {
                begun.get_or_insert(Cow::Borrowed("longer than answer_limit once unpacked"));
                bytes = Cow::Owned(plain);
            }
            Unpacked::Begun(plain, false) if begun.is_some() => bytes = Cow::Owned(plain),
            Unpacked::Begun(..) => {
                return unreadable(
                    Cow::Owned(Vec::new()),
                    format!("compressed ({coding}) and damaged").into(),
                );
            }
            Unpacked::Unknown => {
                return unreadable(
                    Cow::Owned(Vec::new()),
                    format!("in the coding `{coding}`, which is not known").into(),
                );
            }
        }
    }
    let bytes = match decoded(headers, bytes) {
        Ok(bytes) => bytes,
        Err((bytes, why)) => return unreadable(bytes, why.into()),
    };
    if end == BodyEnd::Cut {
        return unreadable(bytes, Cow::Borrowed("cut off before its end"));
    }
    // A character may have been cut at the end of a beginning.
    if json
        && let Err(e) = std::str::from_utf8(&bytes)
        && (begun.is_none() || e.error_len().is_some())
    {
        return unreadable(bytes, Cow::Borrowed("not UTF-8, and its charset is not told"));
    }
    if let Some(why) = begun {
        return Text {
            bytes,
            legible: Legible::Begun,
            why,
        };
    }
    let (legible, why) = match json.then(|| serde_json::from_slice::<IgnoredAny>(&bytes)) {
        Some(Ok(_)) => (
            Legible::Json,
            "no JSON of the shape that the rule needs, or a name stands in it twice",
        ),
        Some(Err(_)) if bytes.is_empty() => (Legible::Text, "empty"),
        Some(Err(_)) | None => (Legible::Text, "no JSON"),
    };
    Text {
        bytes,
        legible,
        why: Cow::Borrowed(why),
    }
}

/// Names of the codings, in the order in which they were applied, in small letters.
fn codings(headers: &HeaderMap) -> Vec<String> {
    let of = |name: HeaderName| {
        let values = headers.get_all(name).iter();
        values.flat_map(|value| {
            let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
            let names: Vec<_> = text.split(',').map(|c| c.trim().to_owned()).collect();
            names
        })
    };
    of(CONTENT_ENCODING).filter(|c| !c.is_empty()).collect()
}

enum Unpacked {
    /// It was not packed.
    Plain,
    Whole(Vec<u8>),
    /// As far as it could be unpacked; whether the bound was the reason.
    Begun(Vec<u8>, bool),
    Unknown,
}

fn unpack(coding: &str, body: &[u8], limit: usize) -> Unpacked {
    match coding {
        "identity" => Unpacked::Plain,
        // A body of no bytes has nothing in it, whatever its coding.
        _ if body.is_empty() => Unpacked::Plain,
        "gzip" | "x-gzip" => bounded(flate2::read::MultiGzDecoder::new(body), limit),
        // The name means zlib, and some send it without zlib's head. The second byte makes the first two a multiple
        // of 31 in zlib alone.
        "deflate" => match body {
            [a, b, ..] if a & 15 == 8 && u16::from_be_bytes([*a, *b]).is_multiple_of(31) => {
                bounded(flate2::read::ZlibDecoder::new(body), limit)
            }
            _ => bounded(flate2::read::DeflateDecoder::new(body), limit),
        },
        "br" => bounded(brotli_decompressor::Decompressor::new(body, 4096), limit),
        "zstd" => match zstd::stream::read::Decoder::new(body) {
            Ok(mut decoder) => match decoder.window_log_max(23) {
                Ok(()) => bounded(decoder, limit),
                Err(_) => Unpacked::Begun(Vec::new(), false),
            },
            Err(_) => Unpacked::Begun(Vec::new(), false),
        },
        _ => Unpacked::Unknown,
    }
}

fn bounded(reader: impl Read, limit: usize) -> Unpacked {
    let mut plain = Vec::new();
    match reader.take(limit as u64 + 1).read_to_end(&mut plain) {
        Ok(_) if plain.len() > limit => {
            plain.truncate(limit);
            Unpacked::Begun(plain, true)
        }
        Ok(_) => Unpacked::Whole(plain),
        Err(_) => Unpacked::Begun(plain, false),
    }
}

type Bytes<'a> = Cow<'a, [u8]>;

/// The bytes in UTF-8 and without a byte order mark. If they cannot be read: as they are, and why.
fn decoded<'a>(headers: &HeaderMap, bytes: Bytes<'a>) -> Result<Bytes<'a>, (Bytes<'a>, String)> {
    let charset = headers
        .get(CONTENT_TYPE)
        .and_then(|value| charset(&String::from_utf8_lossy(value.as_bytes())));
    let utf16 = |of: fn([u8; 2]) -> u16, bytes: &[u8]| {
        let (pairs, _half) = bytes.as_chunks::<2>();
        let units = pairs.iter().map(|pair| of(*pair));
        let text: Result<String, _> = char::decode_utf16(units).collect();
        text.ok()
            .filter(|_| bytes.len().is_multiple_of(2))
            .map(String::into_bytes)
    };
    let plain = match (&bytes[..], charset.as_deref()) {
        ([0xef, 0xbb, 0xbf, ..], _) => {
            return Ok(match bytes {
                Cow::Borrowed(all) => Cow::Borrowed(&all[3..]),
                Cow::Owned(mut all) => {
                    all.drain(..3);
                    Cow::Owned(all)
                }
            });
        }
        ([0xff, 0xfe, rest @ ..], _) => utf16(u16::from_le_bytes, rest),
        ([0xfe, 0xff, rest @ ..], _) => utf16(u16::from_be_bytes, rest),
        (_, None | Some("utf-8" | "utf8" | "us-ascii" | "ascii")) => return Ok(bytes),
        (all, Some("utf-16le")) => utf16(u16::from_le_bytes, all),
        // Without a mark it is big-endian (RFC 2781, 4.3).
        (all, Some("utf-16" | "utf-16be")) => utf16(u16::from_be_bytes, all),
        // The first 256 characters of Unicode.
        (all, Some("iso-8859-1" | "iso8859-1" | "latin1" | "latin-1")) => Some(
            all.iter()
                .map(|b| char::from(*b))
                .collect::<String>()
                .into_bytes(),
        ),
        // Digits, signs and names of JSON stand in ASCII, which most other charsets share.
        (all, Some(_)) if all.is_ascii() => return Ok(bytes),
        (_, Some(_)) => None,
    };
    match plain {
        Some(plain) => Ok(Cow::Owned(plain)),
        None => {
            let named = charset.map_or_else(|| "utf-16".to_owned(), |c| c.chars().take(40).collect());
            Err((bytes, format!("in the charset `{named}`, which cannot be read")))
        }
    }
}

fn charset(content_type: &str) -> Option<String> {
    content_type.split(';').skip(1).find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let value = value.trim().trim_matches('"').to_ascii_lowercase();
        name.trim().eq_ignore_ascii_case("charset").then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;
    use std::io::Write;

    const LIMIT: usize = 1000;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        to.write_all(plain).unwrap();
        to.finish().unwrap()
    }

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut to = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        to.write_all(plain).unwrap();
        to.finish().unwrap()
    }

    fn deflate(plain: &[u8]) -> Vec<u8> {
        let mut to = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        to.write_all(plain).unwrap();
        to.finish().unwrap()
    }

    /// `{"code":7,"message":"no such user"}`, packed by the reference implementation of brotli.
    const BROTLI: &[u8] = &[
        0x0b, 0x11, 0x80, 0x7b, 0x22, 0x63, 0x6f, 0x64, 0x65, 0x22, 0x3a, 0x37, 0x2c, 0x22, 0x6d, 0x65, 0x73,
        0x73, 0x61, 0x67, 0x65, 0x22, 0x3a, 0x22, 0x6e, 0x6f, 0x20, 0x73, 0x75, 0x63, 0x68, 0x20, 0x75, 0x73,
        0x65, 0x72, 0x22, 0x7d, 0x03,
    ];
    const PLAIN: &[u8] = br#"{"code":7,"message":"no such user"}"#;

    fn of(pairs: &[(&'static str, &'static str)], body: &[u8], end: BodyEnd) -> (Vec<u8>, Legible, String) {
        let text = read(&headers(pairs), body, end, LIMIT, true);
        (text.bytes.into_owned(), text.legible, text.why.into_owned())
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let twice = zlib(&gzip(PLAIN));
        for (coding, body) in [
            ("gzip", gzip(PLAIN)),
            ("X-GZIP", gzip(PLAIN)),
            ("deflate", zlib(PLAIN)),
            ("deflate", deflate(PLAIN)),
            ("br", BROTLI.to_vec()),
            ("zstd", zstd::encode_all(PLAIN, 3).unwrap()),
            ("gzip, deflate", twice),
            ("identity", PLAIN.to_vec()),
            ("", PLAIN.to_vec()),
        ] {
            let (text, legible, _) = of(&[("content-encoding", coding)], &body, BodyEnd::Whole);
            assert_eq!((&text[..], legible), (PLAIN, Legible::Json), "{coding}");
        }
    }

    #[test]
    fn what_cannot_be_unpacked_cannot_be_read() {
        let half = gzip(PLAIN);
        let half = &half[..half.len() / 2];
        for (coding, body, why) in [
            ("gzip", PLAIN, "compressed (gzip) and damaged"),
            ("gzip", half, "compressed (gzip) and damaged"),
            ("br", PLAIN, "compressed (br) and damaged"),
            ("zstd", PLAIN, "compressed (zstd) and damaged"),
            ("snappy", PLAIN, "in the coding `snappy`, which is not known"),
        ] {
            let (_, legible, told) = of(&[("content-encoding", coding)], body, BodyEnd::Whole);
            assert_eq!((legible, told.as_str()), (Legible::Not, why));
        }
    }

    #[test]
    fn a_small_answer_does_not_become_a_large_one() {
        let bomb = gzip(&vec![b' '; 10_000_000]);
        assert!(bomb.len() < 20_000);
        let (text, legible, why) = of(&[("content-encoding", "gzip")], &bomb, BodyEnd::Whole);
        assert_eq!((text.len(), legible), (LIMIT, Legible::Begun));
        assert_eq!(why, "longer than answer_limit once unpacked");
        // Cut where reading stopped: what stands before it can be used.
        let long = gzip(&(0..60_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        let (text, legible, _) = of(&[("content-encoding", "gzip")], &long[..400], BodyEnd::Limited);
        assert!(
            !text.is_empty() && legible == Legible::Not,
            "its bytes are no text"
        );
    }

    #[test]
    fn charsets() {
        let utf16 = |mark: &[u8], of: fn(u16) -> [u8; 2]| {
            let text = std::str::from_utf8(PLAIN).unwrap();
            [mark, &text.encode_utf16().flat_map(of).collect::<Vec<_>>()].concat()
        };
        for (content_type, body) in [
            ("application/json", [b"\xef\xbb\xbf", PLAIN].concat()),
            ("application/json; charset=\"UTF-8\"", PLAIN.to_vec()),
            ("application/json", utf16(b"\xff\xfe", u16::to_le_bytes)),
            ("application/json", utf16(b"\xfe\xff", u16::to_be_bytes)),
            (
                "application/json; charset=utf-16",
                utf16(b"\xff\xfe", u16::to_le_bytes),
            ),
            ("application/json; charset=utf-16le", utf16(b"", u16::to_le_bytes)),
            ("application/json;charset=UTF-16", utf16(b"", u16::to_be_bytes)),
            ("application/json; charset=windows-1252", PLAIN.to_vec()),
        ] {
            let (text, legible, _) = of(&[("content-type", content_type)], &body, BodyEnd::Whole);
            assert_eq!((&text[..], legible), (PLAIN, Legible::Json), "{content_type}");
        }
        let latin = b"{\"m\":\"M\xfcller\"}";
        let (text, legible, _) = of(
            &[("content-type", "text/plain; charset=ISO-8859-1")],
            latin,
            BodyEnd::Whole,
        );
        assert_eq!(
            (&text[..], legible),
            ("{\"m\":\"Müller\"}".as_bytes(), Legible::Json)
        );
        for (content_type, why) in [
            ("application/json", "not UTF-8, and its charset is not told"),
            (
                "application/json; charset=shift_jis",
                "in the charset `shift_jis`, which cannot be read",
            ),
        ] {
            let (_, legible, told) = of(&[("content-type", content_type)], latin, BodyEnd::Whole);
            assert_eq!((legible, told.as_str()), (Legible::Not, why));
        }
    }

    #[test]
    fn what_is_json_and_what_is_not() {
        for (body, end, legible, why) in [
            (
                "{\"a\":1}",
                BodyEnd::Whole,
                Legible::Json,
                "no JSON of the shape that the rule needs, or a name stands in it twice",
            ),
            (
                "\n\n{}",
                BodyEnd::Whole,
                Legible::Json,
                "no JSON of the shape that the rule needs, or a name stands in it twice",
            ),
            ("", BodyEnd::Whole, Legible::Text, "empty"),
            ("<html>", BodyEnd::Whole, Legible::Text, "no JSON"),
            (
                "{\"x\": NaN, \"code\": 7}",
                BodyEnd::Whole,
                Legible::Text,
                "no JSON",
            ),
            (")]}',\n{\"code\":7}", BodyEnd::Whole, Legible::Text, "no JSON"),
            ("call({\"code\":7})", BodyEnd::Whole, Legible::Text, "no JSON"),
            ("{\"code\":7} x", BodyEnd::Whole, Legible::Text, "no JSON"),
            (
                "{\"code\":7",
                BodyEnd::Cut,
                Legible::Not,
                "cut off before its end",
            ),
            (
                "{\"code\":7",
                BodyEnd::Limited,
                Legible::Begun,
                "longer than answer_limit",
            ),
        ] {
            let (_, got, told) = of(&[], body.as_bytes(), end);
            assert_eq!((got, told.as_str()), (legible, why), "{body}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_within_its_bound(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            coding in prop_oneof![Just("gzip"), Just("deflate"), Just("br"), Just("zstd"), Just("x, gzip"), Just("")],
            charset in prop_oneof![Just("utf-16"), Just("utf-16le"), Just("latin1"), Just("x"), Just("utf-8")],
        ) {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
            headers.insert(CONTENT_TYPE, HeaderValue::try_from(format!("a/b; charset={charset}")).unwrap());
            let text = read(&headers, &body, BodyEnd::Whole, 100, true);
            prop_assert!(text.bytes.len() <= 300 || coding.is_empty());
        }
    }
}
