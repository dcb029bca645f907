//! What a mock answers about itself: `GET /report`, `POST /control`, `GET /lookup/ID`, also behind a partner's
//! prefix. None of it is counted as a request.

use super::connection::Request;
use super::server::{Partner, Shared};
use std::io::Write as _;

/// Who answers a request.
pub(crate) enum Answered<'s> {
    /// The mock itself; the answer is written.
    Here,
    /// This partner, by its behaviour.
    ByPartner(&'s Partner),
}

/// Answers a request that is about the mock itself, or says whose it is.
pub(crate) fn answer<'s>(
    shared: &'s Shared,
    listener: usize,
    request: &Request<'_>,
    out: &mut Vec<u8>,
) -> Answered<'s> {
    let found = shared.route(listener, request.target);
    let rest = found.map_or(request.target, |(_, rest)| rest);
    let partner = found.map(|(partner, _)| partner);
    let of_all = partner.is_none_or(|p| p.options.prefix == "/");
    match (request.method, rest) {
        ("GET", "/report") => {
            let text = match partner.filter(|_| !of_all) {
                Some(partner) => serde_json::to_vec(&shared.partner_report(partner)),
                None => serde_json::to_vec(&shared.report()),
            };
            match text {
                Ok(text) => write(out, 200, &text),
                Err(e) => problem(out, 500, &e.to_string()),
            }
        }
        ("POST" | "PUT", "/control") => control(shared, partner, request.body, out),
        ("GET", rest) if rest.starts_with("/lookup/") => match partner.map_or_else(|| shared.named(None), Ok)
        {
            Ok(partner) => {
                let id = rest
                    .trim_start_matches("/lookup/")
                    .split('?')
                    .next()
                    .unwrap_or_default();
                let id: Vec<u8> = percent_encoding::percent_decode_str(id).collect();
                let mut state = partner.state.lock();
                state.tally.looked_up(shared.now());
                let count = state.tally.id(&id);
                let text = serde_json::json!({
                    "known": count.applied > 0, "requests": count.requests, "applied": count.applied,
                });
                write(out, 200, text.to_string().as_bytes());
            }
            Err(e) => problem(out, 404, &e.to_string()),
        },
        _ => match partner {
            Some(partner) => return Answered::ByPartner(partner),
            None => problem(out, 404, "no partner has this path"),
        },
    }
    Answered::Here
}

/// `POST /control`: fields of the behaviour, and `partner` where there are several.
fn control(shared: &Shared, partner: Option<&Partner>, body: &[u8], out: &mut Vec<u8>) {
    let mut change: serde_json::Value = match serde_json::from_slice(body) {
        Ok(change) => change,
        Err(e) => return problem(out, 400, &format!("the change is not JSON: {e}")),
    };
    let name = change.as_object_mut().and_then(|fields| fields.remove("partner"));
    let meant = match (name.as_ref().and_then(|n| n.as_str()), partner) {
        (None, Some(partner)) => Ok(partner),
        (name, _) => shared.named(name),
    };
    match meant.and_then(|partner| shared.control(partner, &change)) {
        Ok(()) => write(out, 200, b"{\"changed\":true}"),
        Err(e) => problem(out, 400, &e.to_string()),
    }
}

fn problem(out: &mut Vec<u8>, status: u16, detail: &str) {
    write(
        out,
        status,
        serde_json::json!({"status": status, "detail": detail})
            .to_string()
            .as_bytes(),
    );
}

fn write(out: &mut Vec<u8>, status: u16, body: &[u8]) {
    let reason = http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Other");
    // Writing into a vector cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    out.extend_from_slice(body);
}
