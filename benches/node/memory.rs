//! Memory while millions of records wait for a partner that is down.

use crate::node::{Folder, Setup};
use crate::places::Pinned;
use crate::records::Shape;
use crate::table::{Row, count};
use crate::{Bench, Failed};
use std::time::{Duration, Instant};

const BOUND_MIB: f64 = 256.0;
/// Files of one import each; one at a time is on the disk besides the folder.
const PIECE: u32 = 500_000;

/// 5M records of 1 KB, then 5M of 20 B.
pub fn memory(bench: &mut Bench) -> Result<Vec<Row>, Failed> {
    let mut rows = Vec::new();
    for (size, name) in [(1_000, "1 KB"), (20, "20 B")] {
        rows.extend(waiting(bench, size, name)?);
    }
    Ok(rows)
}

fn waiting(bench: &Bench, size: usize, name: &str) -> Result<Vec<Row>, Failed> {
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let setup = Setup {
        node: format!("memory = \"{BOUND_MIB}MiB\""),
        url: Some(format!("http://127.0.0.1:{port}/hook")),
        place: Pinned::Free,
        ..Setup::default()
    };
    let folder = Folder::new(&setup, &bench.partner, &bench.places)?;
    let total = bench.size(5_000_000);
    for first in (0..total).step_by(PIECE as usize) {
        folder.import(Shape {
            first,
            count: PIECE.min(total - first),
            keys: 1_000_000,
            size,
        })?;
    }
    let mut node = folder.run(&[])?;
    let start = Instant::now();
    let span = Duration::from_secs(if bench.quick { 10 } else { 60 });
    let mut peak = 0.0;
    while start.elapsed() < span {
        let used = node.used()?;
        if used.ended {
            return Err("the node ended".into());
        }
        peak = used.peak_mib;
        std::thread::sleep(Duration::from_millis(100));
    }
    let cpu = node.used()?.cpu_s;
    node.kill()?;
    Ok(vec![
        Row::held(
            format!(
                "resident, {} records of {name} waiting, partner down",
                count(f64::from(total))
            ),
            format!("{peak:.0} MiB"),
            format!("≤ {:.0} MiB (bound {BOUND_MIB:.0} + 150)", BOUND_MIB + 150.0),
            peak <= BOUND_MIB + 150.0,
        ),
        Row::beside(
            format!("CPU in those {} s, {name}", span.as_secs()),
            format!("{cpu:.1} s"),
            "opening, reading to the bound, then waiting",
        ),
    ])
}
