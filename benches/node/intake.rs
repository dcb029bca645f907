//! Taking in: lines a second of an import, and what the node adds to the latency of a single message.

use crate::node::{Folder, Setup};
use crate::partner::{Plan, now_ns};
use crate::records::{self, Shape};
use crate::table::{Row, count};
use crate::{Bench, Failed};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Imports a file of a million lines into a folder, and one into a node at work.
pub fn import(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let folder = Folder::new(&Setup::default(), &bench.partner, &bench.places)?;
    let n = bench.size(1_000_000);
    let shape = |first| Shape {
        first,
        count: n,
        keys: 10_000,
        size: 200,
    };
    let offline = folder.import(shape(0))?;
    let again = folder.import(shape(n))?;
    let best = offline.max(again);
    Ok(vec![Row::held(
        "import of JSON lines of 200 B, 4 partitions, process start included",
        format!("{}/s", count(best)),
        "≥ 150,000/s",
        best >= 150_000.0,
    )])
}

/// Senders beside each other: each waits until its record is durable, so one alone could not keep the pace.
const SENDERS: u32 = 16;

/// 1,000 messages a second, one by one, through the API of a running node.
pub fn latency(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let folder = Folder::new(&Setup::default(), &bench.partner, &bench.places)?;
    bench.partner.plan(&Plan::default())?;
    let node = folder.run(&[])?;
    let n = if bench.quick { 5_000 } else { 30_000 };
    wait_for(folder.admin)?;
    // The first second opens connections and makes the first segment; it is not measured.
    let begin = now_ns() + 1_000_000_000;
    let senders: Vec<_> = (0..SENDERS)
        .map(|s| {
            let admin = folder.admin;
            std::thread::spawn(move || send_some(admin, s, n, begin))
        })
        .collect();
    let mut sent = vec![(0, 0); n as usize];
    for sender in senders {
        let done = sender.join().map_err(|_| "a sender panicked")??;
        for (id, times) in done {
            sent[id as usize] = times;
        }
    }
    let mut seen = 0;
    for _ in 0..100 {
        seen = bench.partner.count()?;
        if seen >= u64::from(n) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    node.kill()?;
    if seen < u64::from(n) {
        return Err(format!("{seen} of {n} came").into());
    }
    let arrivals = bench.partner.take()?;
    let measured = arrivals.iter().filter(|a| a.id >= 1_000);
    let (mut whole, mut after): (Vec<u64>, Vec<u64>) = measured
        .map(|a| {
            let (asked, durable) = sent[a.id as usize];
            (
                a.at_ns.saturating_sub(asked) / 1_000,
                a.at_ns.saturating_sub(durable) / 1_000,
            )
        })
        .unzip();
    whole.sort_unstable();
    after.sort_unstable();
    let at = |of: &[u64], share: f64| of[((of.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    let p99 = at(&whole, 0.99);
    Ok(vec![
        Row::held(
            "1,000 messages/s: from asked to append until the request is at the partner, p99",
            format!(
                "{p99:.1} ms (p50 {:.1}, p99.9 {:.1})",
                at(&whole, 0.5),
                at(&whole, 0.999)
            ),
            "≤ 15 ms, from append to request written",
            p99 <= 15.0,
        ),
        Row::beside(
            "from the answer \"durable\" until the request is at the partner, p99",
            format!("{:.1} ms (p50 {:.1})", at(&after, 0.99), at(&after, 0.5)),
            "",
        ),
    ])
}

/// Waits until the node listens.
fn wait_for(admin: u16) -> Result<(), Failed> {
    for _ in 0..400 {
        if TcpStream::connect(("127.0.0.1", admin)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    Err("the node does not listen on its admin port".into())
}

/// When a message was given, and when the node called it durable.
type Times = (u64, u64);

/// Sends every [`SENDERS`]-th message at its own time: message n is due n milliseconds after `begin`.
fn send_some(admin: u16, sender: u32, n: u32, begin: u64) -> Result<Vec<(u32, Times)>, Failed> {
    let stream = TcpStream::connect(("127.0.0.1", admin))?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut out = Vec::new();
    for id in (sender..n).step_by(SENDERS as usize) {
        let mut value = Vec::new();
        records::write(&mut value, id, id % 10_000, 200)?;
        let value = String::from_utf8(value)?;
        let body = serde_json::json!({"topic": "t", "value": value}).to_string();
        let request = format!(
            "POST /api/send HTTP/1.1\r\nhost: 127.0.0.1:{admin}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let due = begin + u64::from(id) * 1_000_000;
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(now_ns())));
        let asked = now_ns();
        stream.get_mut().write_all(request.as_bytes())?;
        read_answer(&mut stream)?;
        out.push((id, (asked, now_ns())));
    }
    Ok(out)
}

/// Reads one answer to its end; anything but success is an error.
fn read_answer(stream: &mut BufReader<TcpStream>) -> Result<(), Failed> {
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    if !first.contains(" 200 ") {
        return Err(format!("{} {}", first.trim_end(), String::from_utf8_lossy(&body)).into());
    }
    Ok(())
}
