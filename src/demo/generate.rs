//! The request files: a day of clicks, events and orders. The same seed makes the same files.
//!
//! Some lines come twice (a message delivered twice by an upstream system), some cannot be read, and one file lies
//! there a second time under another name.

use super::scenario::{BLOCKED, Scenario};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// 2026-03-01, the day of the requests, in seconds since the epoch.
const DAY: u64 = 1_772_323_200;
/// Files of each kind: one for each quarter of the day.
const QUARTERS: u64 = 4;
/// One line in so many comes again, somewhere behind its first time.
const AGAIN: u64 = 200;
/// One event in so many belongs to a user that the CRM refuses.
const REFUSED: u64 = 2_000;

/// A file and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFile {
    /// Where.
    pub path: PathBuf,
    /// The topic it goes into.
    pub topic: &'static str,
    /// Lines that repeat an earlier message.
    pub repeats: u64,
    /// Lines that cannot be read.
    pub bad: u64,
    /// A copy of a file before it: nothing of it may be sent.
    pub copy: bool,
}

/// Writes all files into this folder. `tracker` is the address of the tracking partner.
pub fn generate(scenario: &Scenario, folder: &Path, tracker: &str) -> io::Result<Vec<RequestFile>> {
    let tracker = tracker.trim_end_matches('/');
    let mut rng = fastrand::Rng::with_seed(scenario.seed);
    let mut files = Vec::new();
    for quarter in 0..QUARTERS {
        let mut file =
            |name: String, topic, messages: u64, packing, line: &mut dyn FnMut(&mut String, u64, u64)| {
                let range = quarter * messages / QUARTERS..(quarter + 1) * messages / QUARTERS;
                let mut out = Packed::create(&folder.join(&name), packing)?;
                let header = (topic == "orders").then_some("id,user,total,currency,placed_at");
                if let Some(header) = header {
                    writeln!(out, "{header}")?;
                }
                let (mut repeats, mut text, mut old) = (0, String::new(), String::new());
                for i in range {
                    // Spread over the day in order, like a log.
                    let at = DAY + i * 86_400 / messages.max(1);
                    text.clear();
                    line(&mut text, i, at);
                    writeln!(out, "{text}")?;
                    if i % AGAIN == AGAIN / 2 {
                        old.clone_from(&text);
                    } else if i % AGAIN == AGAIN - 1 && !old.is_empty() {
                        writeln!(out, "{old}")?;
                        repeats += 1;
                        old.clear();
                    }
                }
                let bad = u64::from(quarter == 2);
                if bad > 0 {
                    writeln!(out, "this line was cut off by a full dis")?;
                }
                files.push(RequestFile {
                    path: out.finish()?,
                    topic,
                    repeats,
                    bad,
                    copy: false,
                });
                io::Result::Ok(())
            };
        file(
            format!("clicks-{quarter}.urls.gz"),
            "clicks",
            scenario.tracker.messages,
            Packing::Gzip,
            &mut |to, i, at| {
                click(to, tracker, i, at, &mut rng);
            },
        )?;
        let users = (scenario.crm.messages / 20).max(10);
        file(
            format!("events-{quarter}.jsonl.zst"),
            "events",
            scenario.crm.messages,
            Packing::Zstd,
            &mut |to, i, at| {
                event(to, users, i, at, &mut rng);
            },
        )?;
        file(
            format!("orders-{quarter}.csv"),
            "orders",
            scenario.shop.messages,
            Packing::None,
            &mut |to, i, at| {
                order(to, i, at, &mut rng);
            },
        )?;
    }
    if let Some(first) = files.first().cloned() {
        let path = folder.join("clicks-0-sent-again-by-mistake.urls.gz");
        std::fs::copy(&first.path, &path)?;
        files.push(RequestFile {
            path,
            repeats: 0,
            bad: 0,
            copy: true,
            ..first
        });
    }
    Ok(files)
}

fn click(to: &mut String, tracker: &str, i: u64, at: u64, rng: &mut fastrand::Rng) {
    use std::fmt::Write;
    let app = ["com.puzzle.garden", "com.runner.city", "org.daily.news"][rng.usize(..3)];
    // Writing into a string cannot fail.
    let _ = write!(
        to,
        "{tracker}/attribution?click_id=c{i:07}&app={app}&campaign=spring-{}&country={}&device={:016x}&ts={at}",
        rng.u32(1..40),
        ["de", "fr", "us", "br", "jp"][rng.usize(..5)],
        rng.u64(..),
    );
}

fn event(to: &mut String, users: u64, i: u64, at: u64, rng: &mut fastrand::Rng) {
    use std::fmt::Write;
    // A user's events are numbered by the message's own number: it rises within every user.
    let user = if i % REFUSED == 7 {
        format!("{BLOCKED}{i}")
    } else {
        format!("u{:06}", rng.u64(..users))
    };
    let kind = ["install", "level_up", "purchase", "session"][rng.usize(..4)];
    let _ = write!(
        to,
        r#"{{"id":"e{i:07}","user":"{user}","seq":{i},"event":"{kind}","revenue":{}.{:02},"currency":"EUR","ts":{at}}}"#,
        rng.u32(..80),
        rng.u32(..100),
    );
}

fn order(to: &mut String, i: u64, at: u64, rng: &mut fastrand::Rng) {
    use std::fmt::Write;
    let _ = write!(
        to,
        "o{i:07},u{:06},{}.{:02},EUR,{at}",
        rng.u32(..5_000),
        rng.u32(5..300),
        rng.u32(..100)
    );
}

#[derive(Clone, Copy)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

/// A file that packs what is written to it.
enum Packed {
    None(PathBuf, BufWriter<File>),
    Gzip(PathBuf, flate2::write::GzEncoder<BufWriter<File>>),
    Zstd(PathBuf, zstd::stream::write::Encoder<'static, BufWriter<File>>),
}

impl Packed {
    fn create(path: &Path, packing: Packing) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let path = path.to_owned();
        Ok(match packing {
            Packing::None => Packed::None(path, file),
            Packing::Gzip => Packed::Gzip(
                path,
                flate2::write::GzEncoder::new(file, flate2::Compression::fast()),
            ),
            Packing::Zstd => Packed::Zstd(path, zstd::stream::write::Encoder::new(file, 1)?),
        })
    }
    fn finish(self) -> io::Result<PathBuf> {
        let (path, mut file) = match self {
            Packed::None(path, file) => (path, file),
            Packed::Gzip(path, packer) => (path, packer.finish()?),
            Packed::Zstd(path, packer) => (path, packer.finish()?),
        };
        file.flush()?;
        Ok(path)
    }
}

impl Write for Packed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Packed::None(_, to) => to.write(bytes),
            Packed::Gzip(_, to) => to.write(bytes),
            Packed::Zstd(_, to) => to.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Packed::None(_, to) => to.flush(),
            Packed::Gzip(_, to) => to.flush(),
            Packed::Zstd(_, to) => to.flush(),
        }
    }
}
