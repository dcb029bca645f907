//! `mock`: the stand-in partner used by demo, tests and benchmarks.
//!
//! The first line on stdout says where it listens (one JSON object with `--json`), the report comes at the end.

use super::{CliError, Exit, Global, Out};
use crate::mock::{
    Behaviour, Fault, FaultShare, Field, Latency, Mock, MockError, MockOptions, PartnerOptions, Phase, Rate,
    Report, RetryAfter, Rule, Span,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of `mock`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 takes a free one and prints it [default: 127.0.0.1:18181]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// A second address for report and control alone, which stays up when the partner is down
    #[arg(long, value_name = "ADDRESS")]
    pub control: Option<SocketAddr>,
    /// Everything from a file (.toml or .json), several partners too; only the options above and below this group may stand beside it
    #[arg(long, value_name = "FILE", conflicts_with = "one")]
    pub from: Option<PathBuf>,
    /// How it behaves.
    #[command(flatten)]
    pub one: One,
    /// Serve TLS with a certificate made at start
    #[arg(long)]
    pub tls: bool,
    /// Write that certificate here, for `ca` of the partner
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub tls_cert: Option<PathBuf>,
    /// End after so long, as 60s [default: at SIGTERM or SIGINT]
    #[arg(long = "for", value_name = "DURATION", value_parser = super::duration_arg)]
    pub duration: Option<Duration>,
    /// Write the report here as JSON at the end [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Seed of everything random in it [default: another one each time]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
}

/// The behaviour of the one partner that is described by options.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "one", multiple = true)]
#[command(next_help_heading = "How it behaves")]
pub struct One {
    /// Answer after so long: 5ms, 0ms..5ms (even), exp:5ms
    #[arg(long, value_name = "LATENCY")]
    pub latency: Option<Latency>,
    /// A fault with its share, as 503=0.05, hang=0.001, reset-before-read, reset-after-read, close, half, drip, garbage, huge, error-body, down; may be given several times
    #[arg(long, alias = "status", alias = "fail", value_name = "FAULT=SHARE")]
    pub fault: Vec<FaultShare>,
    /// Phases one after the other, as "up 5s, down 3s, hang 100x, 500=0.5 10s, up"
    #[arg(long, value_name = "PHASES", value_delimiter = ',')]
    pub script: Vec<Phase>,
    /// Begin the script anew after its last phase
    #[arg(long)]
    pub repeat: bool,
    /// Begin the script with the first request, not at the start
    #[arg(long)]
    pub from_first_request: bool,
    /// An exception, as "key=user-7* latency=30s" or "id=*9 500"; may be given several times, the first that matches wins
    #[arg(long, value_name = "RULE")]
    pub rule: Vec<Rule>,
    /// Own rate limit, as 100/s: more gets 429 with Retry-After; may be given several times
    #[arg(long, value_name = "RATE")]
    pub limit: Vec<Rate>,
    /// Retry-After of 429 and 503: 2s, date:2s, auto or none [default: auto]
    #[arg(long, value_name = "FORM")]
    pub retry_after: Option<RetryAfter>,
    /// Send RateLimit-Limit, -Remaining and -Reset
    #[arg(long)]
    pub ratelimit_headers: bool,
    /// Apply the same message ID once only
    #[arg(long)]
    pub idempotent: bool,
    /// Share of the requests left without a proper answer that are applied all the same [default: 1]
    #[arg(long, value_name = "SHARE")]
    pub applied_in_doubt: Option<f64>,
    /// Where the message ID is: header:NAME, json:/POINTER, query:NAME, path [default: header:Idempotency-Key]
    #[arg(long, value_name = "FIELD")]
    pub id: Option<Field>,
    /// Where the key is: then its requests are checked for overlap
    #[arg(long, value_name = "FIELD")]
    pub key: Option<Field>,
    /// Where the sequence number within the key is: then order is checked
    #[arg(long, value_name = "FIELD", requires = "key")]
    pub seq: Option<Field>,
    /// A sliding window whose most arrivals are counted, as 1s; may be given several times [default: 1s]
    #[arg(long, value_name = "DURATION")]
    pub window: Vec<Span>,
    /// A limit that it is meant to see kept, as 500/s, by arrival in every sliding window: the report says whether it was, and the exit code is 1 if not; may be given several times
    #[arg(long, value_name = "RATE")]
    pub most: Vec<Rate>,
}

impl Args {
    fn options(&self) -> Result<MockOptions, CliError> {
        let mut options = match &self.from {
            Some(path) => load(path)?,
            None => MockOptions {
                partners: vec![self.one.partner()],
                ..MockOptions::default()
            },
        };
        options.listen = self.listen.unwrap_or(options.listen);
        options.control = self.control.or(options.control);
        options.tls |= self.tls;
        options.tls_cert = self.tls_cert.clone().or(options.tls_cert);
        options.seed = self.seed.or(options.seed);
        Ok(options)
    }
}

impl One {
    fn partner(&self) -> PartnerOptions {
        let one = self.clone();
        let mut partner = PartnerOptions::default();
        partner.id = one.id.unwrap_or(partner.id);
        partner.key = one.key;
        partner.seq = one.seq;
        if !one.window.is_empty() {
            partner.windows = one.window;
        }
        partner.most = one.most;
        let usual = Behaviour::default();
        partner.behaviour = Behaviour {
            latency: one.latency.unwrap_or_default(),
            faults: one.fault,
            limits: one.limit,
            retry_after: one.retry_after.unwrap_or(usual.retry_after),
            ratelimit_headers: one.ratelimit_headers,
            idempotent: one.idempotent,
            applied_in_doubt: one.applied_in_doubt.unwrap_or(usual.applied_in_doubt),
            rules: one.rule,
            script: one.script,
            repeat: one.repeat,
            from_first_request: one.from_first_request,
            ..usual
        };
        partner
    }
}

fn load(path: &Path) -> Result<MockOptions, CliError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        CliError::usage("cannot read the options")
            .at(path.display())
            .caused_by(e)
    })?;
    let wrong = |e: String| {
        CliError::usage(format!("the options are not valid: {}", e.trim_end())).at(path.display())
    };
    if path.extension().is_some_and(|e| e == "json") {
        serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))
    } else {
        toml::from_str(&text).map_err(|e| wrong(e.to_string()))
    }
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let options = args.options()?;
    if options.partners.iter().any(|p| can_close(&p.behaviour)) && options.control.is_none() {
        eprintln!(
            "note: while the partner is down its report cannot be reached either; --control gives it an address of its own"
        );
    }
    let mock = Mock::start(options).map_err(|e| match e {
        MockError::Listen { addr, source } => CliError::failed("cannot listen")
            .at(addr)
            .mend("choose another address with --listen")
            .caused_by(source),
        other => CliError::failed("cannot start the stand-in partner").caused_by(other),
    })?;
    let mut out = Out::new(global);
    let started = serde_json::json!({ "listen": mock.addr(), "control": mock.control_addr() });
    out.either(&started, format_args!("listening on {}", mock.addr()))?;
    out.flush()?;
    wait(args.duration)?;
    let report = mock.stop();
    match &args.report {
        Some(path) => write(path, &report)?,
        None if out.is_json() => out.object(&report)?,
        None => out.line(serde_json::to_string_pretty(&report).unwrap_or_default())?,
    }
    out.finish()?;
    let exceeded = report.exceeded();
    exceeded
        .iter()
        .for_each(|what| eprintln!("limit exceeded: {what}"));
    Ok(match exceeded.is_empty() {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

/// Whether it closes its listener at some time.
fn can_close(behaviour: &Behaviour) -> bool {
    let scripted = behaviour.script.iter().flat_map(|p| &p.faults);
    scripted.chain(&behaviour.faults).any(|f| f.fault == Fault::Down)
}

/// Writes the report whole or not at all: who waits for the file must not find half of it.
fn write(path: &Path, report: &Report) -> Result<(), CliError> {
    let failed = |e: std::io::Error| {
        CliError::failed("cannot write the report")
            .at(path.display())
            .caused_by(e)
    };
    let text = serde_json::to_vec_pretty(report).map_err(|e| failed(e.into()))?;
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    std::io::Write::write_all(&mut file, &text).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Until a signal, or the time is over.
fn wait(time: Option<Duration>) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::failed("cannot wait for signals").caused_by(e);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
        let over = async {
            match time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = over => {}
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("mock").chain(line.split('|'))).map(|l| l.args)
    }

    #[test]
    fn options_become_the_partner_they_describe() {
        let args = parse("--latency|exp:5ms|--status|500=0.01|--script|up 5s, down 3s,429 10x|--limit|500/s|--rule|key=a* hang|--idempotent")
            .expect("arguments");
        let partner = args.options().expect("options").partners.remove(0);
        assert_eq!(partner.behaviour.script.len(), 3);
        assert_eq!(partner.behaviour.faults[0].fault, Fault::Status(500));
        assert!(partner.behaviour.idempotent && can_close(&partner.behaviour));
        assert!(parse("--latency|soon").is_err());
        assert!(parse("--from|x.toml|--latency|1ms").is_err());
        assert!(parse("--seq|json:/n").is_err());
    }

    #[test]
    fn a_file_describes_several_partners() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("mock.toml");
        std::fs::write(
            &path,
            "[[partners]]\nname='a'\nprefix='/a'\n[[partners]]\nname='b'\nprefix='/b'\nfaults=['500=0.5']\n",
        )
        .expect("write");
        let args = parse(&format!("--listen|127.0.0.1:0|--from|{}", path.display())).expect("arguments");
        let options = args.options().expect("options");
        assert_eq!((options.partners.len(), options.listen.port()), (2, 0));
        std::fs::write(&path, "listn = 1").expect("write");
        let error = args.options().expect_err("misspelt").to_string();
        assert!(error.contains("listn") && error.contains("mock.toml"), "{error}");
        std::fs::write(&path, "[[partners]]\nlatenzy = '1ms'").expect("write");
        assert!(
            args.options()
                .expect_err("misspelt")
                .to_string()
                .contains("latenzy")
        );
    }
}
