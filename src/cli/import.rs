//! `import`: files into a topic, one transaction a file, resumable, never twice.
//!
//! A file that cannot be imported does not keep the others from it: each is a transaction of its own, and running
//! the same command again does what is left.

use super::door::{self, Door};
use super::{CliError, Exit, Global, Out};
use crate::api::{ImportReport, ImportRequest};
use crate::config::Config;
use crate::intake::import::{ImportError, ImportOptions, Importer, Progress};
use crate::intake::topic_spec;
use crate::telemetry::terminal::stderr_width;
use crate::telemetry::text::{count, counted};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::task::Poll;

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and pipes; gz and zst are unpacked; - is stdin
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Topic to write to
    #[arg(long, value_name = "NAME")]
    pub topic: String,
    /// Form of the files
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,
    /// Where the records' keys come from, as json:/user or a CSV column [default: key of the topic section]
    #[arg(long, value_name = "SOURCE")]
    pub key: Option<String>,
    /// What stdin or a pipe is called in sources and reports
    #[arg(long, value_name = "NAME", default_value = "stdin")]
    pub name: String,
    /// File for lines that cannot be read [default: FILE.rejects beside each file; a running node keeps its own]
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,
    /// End with exit code 1 at the first bad line, and import nothing of its file. Without it, lines that are rejected leave the exit code 0: the report counts them
    #[arg(long)]
    pub strict: bool,
    /// Between the fields of CSV files: one character, or tab [default: by their content]
    #[arg(long, value_name = "CHAR")]
    pub delimiter: Option<String>,
    /// Of a file that begins with all of one imported before, only what comes after it
    #[arg(long, conflicts_with = "again")]
    pub rest: bool,
    /// Import files whose content was imported before; IDs known by then are still not sent again
    #[arg(long)]
    pub again: bool,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// Forms of a file to import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// By the file's name and first line
    Auto,
    /// One JSON value a line
    Jsonl,
    /// JSON that is not one value a line: the elements of arrays, or values over several lines
    Json,
    /// CSV with a header line; each row becomes a JSON object
    Csv,
    /// One URL a line
    Urls,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::Jsonl => "jsonl",
            Format::Json => "json",
            Format::Csv => "csv",
            Format::Urls => "urls",
        }
    }
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let mut out = Out::new(global);
    let door = Door::open(global)?;
    let exit = match door {
        Door::Node(client) => {
            let runtime = door::runtime()?;
            each(&args, &mut out, |file, request, bar| {
                let request = request.clone();
                runtime.block_on(async {
                    let pieces = pieces(file, bar.clone())?;
                    client.import(&request, pieces).await.map_err(door::refused)
                })
            })?
        }
        Door::Folder(log) => {
            let config = global.load()?.config;
            let importer = Importer::new(log.clone(), config.node.data.join("spool"));
            let exit = each(&args, &mut out, |file, request, bar| {
                into_log(&importer, &config, &args, file, request, bar)
            });
            log.close()
                .map_err(|e| CliError::failed("cannot close the log").caused_by(e))?;
            exit?
        }
    };
    out.finish()?;
    Ok(exit)
}

/// Imports one file after the other; tells what became of each.
fn each(
    args: &Args,
    out: &mut Out,
    mut import: impl FnMut(&Path, &ImportRequest, &ProgressBar) -> Result<ImportReport, CliError>,
) -> Result<Exit, CliError> {
    let mut exit = Exit::Done;
    for file in &args.files {
        let request = args.request(file);
        // The key is wrong in every file or in none.
        ImportOptions::of_request(&request).map_err(CliError::usage)?;
        let report = if file.is_dir() {
            let refused = CliError::failed("a folder cannot be imported").at(file.display());
            Err(refused.mend("name the files in it"))
        } else {
            let bar = bar(args, file, &request.name);
            let report = import(file, &request, &bar);
            bar.finish_and_clear();
            report
        };
        match report {
            Ok(report) => tell(out, &report)?,
            Err(e) => {
                out.flush()?;
                e.print();
                exit = e.exit();
            }
        }
    }
    Ok(exit)
}

impl Args {
    fn request(&self, file: &Path) -> ImportRequest {
        let name = match file.file_name() {
            Some(name) if !is_pipe(file) => name.to_string_lossy().into_owned(),
            _ => self.name.clone(),
        };
        ImportRequest {
            topic: self.topic.clone(),
            name,
            format: Some(self.format.word().to_owned()),
            again: self.again,
            key: self.key.clone(),
            strict: self.strict,
            delimiter: self.delimiter.clone(),
            rest: self.rest,
        }
    }

    fn rejects(&self, file: &Path) -> PathBuf {
        self.rejects.clone().unwrap_or_else(|| {
            let mut name = if is_pipe(file) {
                self.name.clone().into()
            } else {
                file.as_os_str().to_owned()
            };
            name.push(".rejects");
            name.into()
        })
    }
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

/// Whether its path says nothing of what comes out of it: stdin, a pipe that the shell has made, a named one.
fn is_pipe(file: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let piped = || {
        let kind = file.metadata().ok()?.file_type();
        Some(kind.is_fifo() || kind.is_char_device() || kind.is_socket())
    };
    is_stdin(file) || file.starts_with("/dev/fd") || file == Path::new("/dev/stdin") || piped() == Some(true)
}

fn into_log(
    importer: &Importer,
    config: &Config,
    args: &Args,
    file: &Path,
    request: &ImportRequest,
    bar: &ProgressBar,
) -> Result<ImportReport, CliError> {
    let section = door::section(config, &request.topic)?;
    let spec = topic_spec(config, &section);
    let usual = ImportOptions::of_request(request).map_err(CliError::usage)?;
    let mut options = usual.within(config.log.segment);
    options.rejects = Some(args.rejects(file));
    let mut progress = |p: Progress| {
        bar.set_length(p.total);
        bar.set_position(p.bytes);
        bar.set_message(match p.pass {
            1 => "hashing".to_owned(),
            _ => format!("{} lines", count(p.lines)),
        });
    };
    let done = if is_stdin(file) {
        importer.import_reader(&section, &spec, &mut io::stdin().lock(), &options, &mut progress)
    } else {
        importer.import_file(&section, &spec, file, &options, &mut progress)
    };
    done.map_err(|e| explained(e, file))
}

fn explained(error: ImportError, file: &Path) -> CliError {
    let mend = match &error {
        ImportError::Format { .. } => Some("say it with --format"),
        ImportError::NothingValid { .. } => Some("say with --format what it holds"),
        ImportError::BadLine { .. } => Some("without --strict bad lines go to a reject file"),
        ImportError::Changed { .. } => Some("import it again when nobody writes to it"),
        ImportError::OverLines { .. } => Some("leave --format out, or say --format json"),
        ImportError::Unsure { .. } => {
            Some("--again imports all of it; without --format and --delimiter it is read as it was then")
        }
        ImportError::Grown { .. } => Some(
            "--rest imports only what comes after them, --again all; an `id` for the topic tells old from new",
        ),
        _ => None,
    };
    let failed = CliError::failed(format!("nothing of {} was imported", file.display())).caused_by(error);
    match mend {
        Some(how) => failed.mend(how),
        None => failed,
    }
}

fn tell(out: &mut Out, report: &ImportReport) -> Result<(), CliError> {
    let mut text = format!("{}: ", report.name);
    if report.known {
        text.push_str(&format!(
            "imported into {} before ({}); --again imports it once more",
            report.topic,
            counted(report.accepted, "record")
        ));
    } else {
        text.push_str(&format!(
            "{} into {}",
            counted(report.accepted, "record"),
            report.topic
        ));
        if report.duplicates > 0 {
            text.push_str(&format!(
                ", {} with an ID that is in it before",
                count(report.duplicates)
            ));
        }
        if report.passed_over > 0 {
            text.push_str(&format!(", {} left out", counted(report.passed_over, "record")));
        }
        if report.rejected > 0 {
            text.push_str(&format!(", {} rejected", counted(report.rejected, "line")));
        }
        if let Some(file) = &report.reject_file {
            text.push_str(&format!(", see {file}"));
        }
    }
    out.either(report, text)?;
    out.flush()?;
    for reject in report.rejects.iter().take(5) {
        eprintln!("{}:{}: {}", report.name, reject.line, reject.reason);
    }
    for note in &report.notes {
        eprintln!("note: {}: {note}", report.name);
    }
    Ok(())
}

/// A bar on a terminal, nothing elsewhere: the report of each file is the plain line.
fn bar(args: &Args, file: &Path, name: &str) -> ProgressBar {
    if args.quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let total = file.metadata().map_or(0, |m| m.len());
    let form = bar_form(stderr_width().unwrap_or(80));
    let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total)
        .with_style(style)
        .with_prefix(name.to_owned())
}

/// What the bar shows on a terminal of so many columns: it takes what the words leave.
fn bar_form(columns: usize) -> &'static str {
    match columns {
        120.. => "{prefix} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left, {msg}",
        70.. => "{prefix} [{wide_bar}] {percent:>3}%, {eta} left, {msg}",
        _ => "{percent:>3}% [{wide_bar}] {eta}",
    }
}

/// Bytes of one piece of an upload, and how many may wait (I6).
const PIECE: usize = 256 << 10;
const PIECES: usize = 8;

/// A file as pieces, read by a thread of its own. One that breaks off says so, so that no part is taken for the whole.
fn pieces(
    file: &Path,
    bar: ProgressBar,
) -> Result<impl futures_util::Stream<Item = io::Result<Bytes>> + Send + Sync + 'static, CliError> {
    let unreadable = |e: io::Error| {
        CliError::failed("cannot read the file")
            .at(file.display())
            .caused_by(e)
    };
    let mut from: Box<dyn Read + Send> = if is_stdin(file) {
        Box::new(io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(unreadable)?)
    };
    let (to, mut taken) = tokio::sync::mpsc::channel::<io::Result<Option<Bytes>>>(PIECES);
    let read = move || {
        loop {
            let mut buf = vec![0; PIECE];
            let piece = match from.read(&mut buf) {
                Ok(0) => Ok(None),
                Ok(n) => {
                    bar.inc(n as u64);
                    buf.truncate(n);
                    Ok(Some(Bytes::from(buf)))
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let last = !matches!(piece, Ok(Some(_)));
            if to.blocking_send(piece).is_err() || last {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("import-read".into())
        .spawn(read)
        .map_err(unreadable)?;
    let mut over = false;
    Ok(futures_util::stream::poll_fn(move |cx| {
        if over {
            return Poll::Ready(None);
        }
        taken.poll_recv(cx).map(|piece| {
            over = !matches!(piece, Some(Ok(Some(_))));
            match piece {
                Some(piece) => piece.transpose(),
                // The thread marks the end of the file. Without the mark the file is not at its end.
                None => Some(Err(io::Error::other("the thread that reads the file has failed"))),
            }
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TopicConfig;
    use crate::intake::fake_log::{FakeLog, values};
    use clap::Parser;
    use std::sync::Arc;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Args {
        Line::try_parse_from([&["import"], line].concat())
            .expect("arguments")
            .args
    }

    #[test]
    fn a_file_that_fails_does_not_keep_the_others_out() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("good.jsonl"), "{\"id\":1}\nbad\n").expect("write");
        std::fs::write(path("bad.jsonl"), "a,b\n").expect("write");
        std::fs::write(path("last.jsonl"), "{\"id\":2}\n").expect("write");
        let log = FakeLog::default();
        let importer = Importer::new(Arc::new(log.clone()), folder.path().join("spool"));
        let config = Config::for_test(folder.path()).with_topic(TopicConfig::new("t", "p"));
        let (good, bad, last) = (path("good.jsonl"), path("bad.jsonl"), path("last.jsonl"));
        let folder = folder.path().display().to_string();
        let args = parse(&[
            "--topic",
            "t",
            "--quiet",
            &good,
            &bad,
            &folder,
            &last,
            "missing.jsonl",
        ]);
        let mut out = Out::new(&Global::default());
        let exit = each(&args, &mut out, |file, request, bar| {
            into_log(&importer, &config, &args, file, request, bar)
        });
        assert_eq!(exit.expect("each"), Exit::Failed);
        assert_eq!(values(&log, "t"), ["{\"id\":1}", "{\"id\":2}"]);
        let rejects = std::fs::read_to_string(path("good.jsonl.rejects")).expect("rejects");
        assert!(rejects.contains("\"line\":2"), "{rejects}");
        let nowhere = parse(&["--topic", "x", &good]);
        let request = nowhere.request(Path::new(&good));
        let error = into_log(
            &importer,
            &config,
            &nowhere,
            Path::new(&good),
            &request,
            &ProgressBar::hidden(),
        );
        assert_eq!(error.expect_err("no section").exit(), Exit::Usage);
    }

    #[test]
    fn stdin_has_the_name_it_is_given() {
        let args = parse(&["--topic", "t", "--name", "export.csv", "-"]);
        assert_eq!(args.request(Path::new("-")).name, "export.csv");
        assert_eq!(args.rejects(Path::new("-")), Path::new("export.csv.rejects"));
        assert_eq!(args.rejects(Path::new("a/b.csv")), Path::new("a/b.csv.rejects"));
    }

    #[test]
    fn a_pipe_has_the_name_that_it_is_given() {
        let args = parse(&["--topic", "t", "--name", "export.csv", "/dev/fd/63"]);
        for pipe in ["/dev/fd/63", "/dev/stdin", "/dev/null"] {
            let pipe = Path::new(pipe);
            assert_eq!(args.request(pipe).name, "export.csv");
            assert_eq!(args.rejects(pipe), Path::new("export.csv.rejects"));
        }
    }

    /// A bar that is wider than its terminal would scroll it away.
    #[test]
    fn the_bar_fits_its_terminal() {
        for columns in [40, 69, 70, 119, 120, 300] {
            let form = bar_form(columns);
            ProgressStyle::with_template(form).expect("a template");
            assert!(form.contains("{wide_bar}") && !form.contains("{bar"), "{form}");
        }
        assert!(!bar_form(40).contains("{prefix}") && !bar_form(40).contains("{msg}"));
    }

    #[test]
    fn a_file_comes_in_pieces_and_a_folder_is_an_error() {
        use futures_util::StreamExt;
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x");
        std::fs::write(&path, vec![7; PIECE * 20 + 5]).expect("write");
        let runtime = door::runtime().expect("runtime");
        let read = |path: &Path| {
            let pieces = pieces(path, ProgressBar::hidden()).expect("pieces");
            runtime.block_on(pieces.collect::<Vec<_>>())
        };
        let all: usize = read(&path).into_iter().map(|p| p.expect("piece").len()).sum();
        assert_eq!(all, PIECE * 20 + 5);
        assert!(read(folder.path()).last().is_some_and(Result::is_err));
    }
}
