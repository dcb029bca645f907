//! The whole node, measured: the real binary as a process, a partner that does nothing but count beside it.
//!
//! `scripts/bench` builds and runs it; `scripts/bench NAME` runs one scenario, `--quick` tries all of them with a
//! tenth of the messages. Each figure stands beside the limit it is held against or what others need. Conditions
//! and what the figures mean: `docs/benchmarks.md`.
//!
//! Node and partner get a core each where `taskset` is at hand. Processes are compared by ratios within one run.

mod bare;
mod cost;
mod intake;
mod limit;
mod memory;
mod node;
mod partner;
mod places;
mod records;
mod shape;
mod start;
mod table;

use clap::Parser;
use partner::Partner;
use places::Places;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use table::Row;

/// As in the product: what is compared must use the same allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Failed = Box<dyn Error + Send + Sync>;

/// Measures a whole node.
#[derive(Debug, Parser)]
struct Args {
    /// Scenarios to run; all of them if none is named
    names: Vec<String>,
    /// A tenth of the messages: to try it out, not to quote it
    #[arg(long)]
    quick: bool,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Names the scenarios and ends
    #[arg(long)]
    list: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    serve: Option<PathBuf>,
    #[arg(long, hide = true)]
    bare: Option<bare::Bare>,
    #[arg(long, hide = true, default_value_t = 0)]
    port: u16,
    #[arg(long, hide = true)]
    ca: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 100_000)]
    requests: u32,
    /// Requests in flight in the scenarios of cost
    #[arg(long, default_value_t = 64)]
    in_flight: u32,
}

/// What scenarios share.
struct Bench {
    partner: Partner,
    places: Places,
    quick: bool,
    in_flight: u32,
}

impl Bench {
    /// So many messages, or a tenth of them to try.
    fn size(&self, full: u32) -> u32 {
        if self.quick { full / 10 } else { full }
    }
}

type Scenario = fn(&mut Bench) -> Result<Vec<Row>, Failed>;

/// Name, what it measures, how.
const SCENARIOS: &[(&str, &str, Scenario)] = &[
    (
        "cost",
        "CPU per delivery, resident size, bytes written",
        cost::plain,
    ),
    ("cost-tls", "the same over TLS", cost::tls),
    (
        "start",
        "first delivery after a start, after kill -9",
        start::start,
    ),
    ("slow", "partner of 100 ms, 1,000 in flight", shape::slow),
    ("short", "short work, and one stuck key beside it", shape::short),
    ("limit", "a limit held and used, across kill -9", limit::limit),
    ("import", "lines a second", intake::import),
    (
        "latency",
        "what the node adds at 1,000 messages/s",
        intake::latency,
    ),
    (
        "restart",
        "a million finished records above the position",
        start::finished_above,
    ),
    (
        "memory",
        "five million records waiting, partner down",
        memory::memory,
    ),
    (
        "kept",
        "a million messages dead, parked, skipped, at 64 MiB",
        memory::kept,
    ),
    (
        "values",
        "a million values of a limit's `by`, at 256 MiB",
        memory::values,
    ),
];

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode, Failed> {
    if let Some(folder) = &args.serve {
        partner::serve(folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(which) = args.bare {
        bare::run(
            which,
            args.port,
            args.ca.as_deref(),
            args.requests,
            args.in_flight,
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.list {
        for (name, what, _) in SCENARIOS {
            println!("{name:14} {what}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    for name in &args.names {
        if !SCENARIOS.iter().any(|(n, ..)| n == name) {
            return Err(format!("unknown scenario {name}; --list names them").into());
        }
    }
    let folder = tempfile::Builder::new().prefix("sluicegate-bench").tempdir()?;
    let places = Places::find();
    if !places.pins() {
        eprintln!("no taskset here: processes share all cores, figures will vary more");
    }
    let mut bench = Bench {
        partner: Partner::start(folder.path(), &places)?,
        places,
        quick: args.quick,
        in_flight: args.in_flight,
    };
    table::head(args.json);
    let mut short = 0;
    for (name, _, scenario) in SCENARIOS {
        if !args.names.is_empty() && !args.names.iter().any(|n| n == name) {
            continue;
        }
        let rows = scenario(&mut bench).unwrap_or_else(|e| vec![Row::failed(name, &e.to_string())]);
        for row in &rows {
            row.print(args.json);
            short += u32::from(row.is_short());
        }
    }
    eprintln!("{short} short");
    Ok(ExitCode::from(u8::from(short > 0)))
}
