//! `check`: every mistake in the configuration at once, and the effective configuration.

use super::{CliError, Exit, Global, Out, door};
use crate::admin::Client;
use crate::app;
use crate::clock::Clock;
use crate::config::{self, Finding, Loaded, PartnerConfig, Severity};
use crate::core::in_full::in_full;
use crate::core::mask::Masker;
use crate::intake::hints::of_topics;
use crate::sink::http::HttpSink;
use crate::sink::secrets::Secrets;
use crate::telemetry::text::counted;
use serde::Serialize;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Instant;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also try to connect to every partner; nothing is sent
    #[arg(long)]
    pub connect: bool,
    /// Show every key with its value and where it comes from, not only those that are set; secrets masked
    #[arg(long)]
    pub effective: bool,
}

/// `--json`: the whole answer in one object.
#[derive(Serialize)]
struct Answer<'a> {
    ok: bool,
    findings: &'a [Finding],
    #[serde(skip_serializing_if = "Option::is_none")]
    effective: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    connect: Vec<Connect>,
    /// What stands out in the records of topics.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hints: Vec<String>,
}

/// Whether a partner's address took a connection.
#[derive(Serialize)]
struct Connect {
    partner: String,
    address: Option<String>,
    ms: Option<u64>,
    error: Option<String>,
}

/// Loads, tells, connects. Exit code 2 where the configuration has mistakes, 1 where a partner took no connection.
pub fn run(args: Args, global: &Global) -> Result<Exit, CliError> {
    let mut out = Out::new(global);
    let loaded = match config::load(&global.files(), config::process_env()) {
        Ok(loaded) => loaded,
        Err(findings) => return mistakes(out, &findings),
    };
    let unstartable = unstartable(&loaded);
    if !unstartable.is_empty() {
        return mistakes(out, &unstartable);
    }
    let hints = hints(&loaded, global);
    let connect = if args.connect {
        connect_all(&loaded)
    } else {
        Vec::new()
    };
    let refused = connect.iter().filter(|c| c.error.is_some()).count();
    if out.is_json() {
        let effective = Some(loaded.effective_json());
        out.object(&Answer {
            ok: refused == 0,
            findings: &loaded.warnings,
            effective,
            connect,
            hints,
        })?;
    } else {
        tell(&mut out, &args, &loaded, &connect, &hints)?;
    }
    out.finish()?;
    Ok(if refused > 0 { Exit::Failed } else { Exit::Done })
}

/// What would keep `run` from making the partners: secrets that cannot be used, templates that cannot be filled,
/// certificates that cannot be read. Partners whose secrets are not here are left out: a configuration may be checked
/// where they are not.
fn unstartable(loaded: &Loaded) -> Vec<Finding> {
    let mut found = loaded.unusable_secrets();
    let sources = loaded.secret_sources().ok();
    let secrets = sources.and_then(|sources| Secrets::load(&sources).ok());
    let partners = loaded.config.partners.values();
    found.extend(partners.filter_map(|partner| {
        let secrets = match &secrets {
            Some(secrets) => secrets.clone(),
            None if names_no_secret(partner) => Secrets::none(),
            None => return None,
        };
        let error = HttpSink::try_new(partner, &secrets, Clock::start()).err()?;
        let masker = Masker::new(&partner.mask, &secrets.values());
        Some(Finding {
            severity: Severity::Error,
            key: format!("partners.{}", partner.name),
            value: None,
            file: None,
            line: None,
            message: masker.text(&format!("cannot be prepared: {}", in_full(&error))),
            hint: None,
        })
    }));
    found
}

fn names_no_secret(partner: &PartnerConfig) -> bool {
    let headers = partner.headers.iter().map(|(_, value)| value);
    let verify = partner
        .verify
        .iter()
        .flat_map(|v| std::iter::once(&v.url).chain(v.headers.iter().map(|(_, value)| value)));
    std::iter::once(&partner.url)
        .chain(headers)
        .chain(&partner.body)
        .chain(verify)
        .all(|template| !template.contains("secret"))
}

/// What stands out in the records of topics, where a node of this configuration runs or its folder can be opened. The
/// check is about the configuration: it does not fail because of the records.
fn hints(loaded: &Loaded, global: &Global) -> Vec<String> {
    let config = &loaded.config;
    let running = Client::new(
        &config.listen.admin.to_string(),
        global.token().map(|t| t.expose().to_owned()),
    )
    .ok();
    let asked = running.and_then(|client| {
        let ask = async {
            door::must_be_ours(&client, config, &global.files()).await.ok()?;
            client.hints().await.ok()
        };
        door::runtime().ok()?.block_on(ask)
    });
    asked.unwrap_or_else(|| {
        if !config.node.data.join("log").is_dir() {
            return Vec::new();
        }
        let Ok(log) = app::open_log(config) else {
            return Vec::new();
        };
        let hints = of_topics(log.as_ref(), config);
        // Nothing was written.
        let _ = log.close();
        hints
    })
}

fn mistakes(mut out: Out, findings: &[Finding]) -> Result<Exit, CliError> {
    if out.is_json() {
        out.object(&Answer {
            ok: false,
            findings,
            effective: None,
            connect: Vec::new(),
            hints: Vec::new(),
        })?;
    }
    let json = out.is_json();
    out.finish()?;
    let errors = findings.iter().filter(|f| f.severity == Severity::Error).count();
    if !json {
        for finding in findings {
            eprintln!("{finding}");
        }
    }
    Err(CliError::usage(format!(
        "the configuration has {errors} {}",
        if errors == 1 { "mistake" } else { "mistakes" }
    )))
}

fn tell(
    out: &mut Out,
    args: &Args,
    loaded: &Loaded,
    connect: &[Connect],
    hints: &[String],
) -> Result<(), CliError> {
    if args.effective {
        out.line(loaded.effective())?;
    } else {
        out.line(loaded.effective_set())?;
        out.line("# every other key stands at its default; --effective shows all\n")?;
    }
    for c in connect {
        let address = c.address.as_deref().unwrap_or("no fixed address");
        match (&c.error, c.ms) {
            (Some(_), _) => {}
            (None, Some(ms)) => out.line(format!("# {}: {address}: connected in {ms} ms", c.partner))?,
            (None, None) => out.line(format!("# {}: {address}: known only with a record", c.partner))?,
        }
    }
    // What matters comes last, where the eye is.
    out.flush()?;
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    for hint in hints {
        eprintln!("note: {hint}");
    }
    let refused: Vec<_> = connect
        .iter()
        .filter_map(|c| Some((c, c.error.as_ref()?)))
        .collect();
    for (c, error) in &refused {
        let address = c.address.as_deref().unwrap_or_default();
        eprintln!("error: partner {} at {address}: {error}", c.partner);
    }
    let counted = |n: usize, thing: &str| counted(n as u64, thing);
    let warnings = match loaded.warnings.len() {
        0 => String::new(),
        n => format!(", with {}", counted(n, "warning")),
    };
    let found = format!(
        "{}, {}",
        counted(loaded.config.partners.len(), "partner"),
        counted(loaded.config.topics.len(), "topic")
    );
    match refused.len() {
        0 => eprintln!("ok{warnings}: {found}"),
        n => eprintln!(
            "the configuration is in order{warnings}: {found}; {} without connection",
            counted(n, "partner")
        ),
    }
    Ok(())
}

/// Connects to all partners side by side: one that hangs costs its own timeout only.
fn connect_all(loaded: &Loaded) -> Vec<Connect> {
    let partners: Vec<&PartnerConfig> = loaded.config.partners.values().collect();
    let mut connects = Vec::with_capacity(partners.len());
    // A bound on threads at once: hundreds of partners are possible.
    for some in partners.chunks(32) {
        std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|p| (p, scope.spawn(|| connect(p)))).collect();
            for (partner, thread) in running {
                connects.push(thread.join().unwrap_or_else(|_| Connect {
                    partner: partner.name.clone(),
                    address: None,
                    ms: None,
                    error: Some("the check itself failed".into()),
                }));
            }
        });
    }
    connects
}

fn connect(partner: &PartnerConfig) -> Connect {
    let mut result = Connect {
        partner: partner.name.clone(),
        address: None,
        ms: None,
        error: None,
    };
    let Some(address) = address_of(partner.proxy.as_deref().unwrap_or(&partner.url)) else {
        return result;
    };
    result.address = Some(address.clone());
    let began = Instant::now();
    let addresses = match address.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(e) => {
            result.error = Some(format!("cannot resolve: {e}"));
            return result;
        }
    };
    result.error = Some("the name has no address".into());
    for at in addresses {
        match TcpStream::connect_timeout(&at, partner.timeout.connect) {
            Ok(_) => {
                result.ms = Some(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
                result.error = None;
                break;
            }
            Err(e) => result.error = Some(format!("cannot connect: {e}")),
        }
    }
    result
}

/// Host and port of a URL template, if they stand fast without a record.
fn address_of(template: &str) -> Option<String> {
    let (scheme, rest) = template.trim().split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = &rest[..end];
    if authority.contains('{') {
        return None;
    }
    let url = url::Url::parse(&format!("{scheme}://{authority}/")).ok()?;
    let port = url
        .port_or_known_default()
        .or((scheme.starts_with("socks5")).then_some(1080))?;
    Some(format!("{}:{port}", url.host_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, connect: bool) -> Result<Exit, CliError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("actors.toml");
        std::fs::write(&file, text).unwrap();
        let global = Global {
            config: vec![file],
            ..Global::default()
        };
        run(
            Args {
                connect,
                effective: true,
            },
            &global,
        )
    }

    /// What is called right starts: the partners are made as `run` makes them.
    #[test]
    fn what_would_not_start_is_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("k");
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, "garbage").unwrap();
        let with = |partner: &str| {
            format!(
                "[secrets]\nk = {{ file = '{}' }}\n[topics.t]\npartner = 'p'\n[partners.p]\n{partner}",
                secret.display()
            )
        };
        let in_url = with("url = \"http://user:{{ secret('k') | urlencode }}@127.0.0.1/x\"");
        for value in ["p/a@s", "a:b?c#d%41", "plain"] {
            std::fs::write(&secret, value).unwrap();
            assert_eq!(check(&in_url, false).unwrap(), Exit::Done, "{value}");
        }
        let refused = |text: &str| check(text, false).unwrap_err().exit();
        let as_host = with("url = \"http://{{ secret('k') }}/x\"");
        std::fs::write(&secret, "not a host/").unwrap();
        assert_eq!(refused(&as_host), Exit::Usage);
        let garbage = with(&format!("url = 'https://127.0.0.1/'\nca = '{}'", ca.display()));
        assert_eq!(refused(&garbage), Exit::Usage);
        // A secret that is there and cannot be used keeps `run` from starting. Other commands only warn: they need none.
        std::fs::write(&secret, [0xff, 0xfe]).unwrap();
        assert_eq!(refused(&in_url), Exit::Usage);
        std::fs::write(&secret, "good\n\n").unwrap();
        assert_eq!(refused(&in_url), Exit::Usage);
        let found = config::load_text("actors.toml", &in_url).unwrap().warnings;
        assert!(
            found
                .iter()
                .any(|f| f.key == "secrets.k" && f.message.contains("a line break")),
            "{found:?}"
        );
        // Without its secrets a configuration can still be checked.
        std::fs::remove_file(&secret).unwrap();
        assert_eq!(check(&in_url, false).unwrap(), Exit::Done);
        assert_eq!(refused(&garbage), Exit::Usage);
    }

    #[test]
    fn a_host_is_known_where_no_record_decides_it() {
        assert_eq!(
            address_of("https://u:p@api.acme.com/{{ key }}?a={{ id }}").as_deref(),
            Some("api.acme.com:443")
        );
        assert_eq!(address_of("http://[::1]:8080").as_deref(), Some("[::1]:8080"));
        assert_eq!(
            address_of("socks5://127.0.0.1").as_deref(),
            Some("127.0.0.1:1080")
        );
        assert_eq!(address_of("https://{{ headers.host }}/x"), None);
        assert_eq!(address_of("{{ value }}"), None);
    }

    #[test]
    fn exit_codes_tell_mistakes_from_dead_partners() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = format!("[topics.t]\npartner = 'p'\n[partners.p]\nurl = 'http://127.0.0.1:{port}/'\n");
        assert_eq!(check(&text, true).unwrap(), Exit::Done);
        drop(listener);
        assert_eq!(check(&text, true).unwrap(), Exit::Failed);
        assert_eq!(check(&text, false).unwrap(), Exit::Done);
        assert_eq!(check("[nod]\n", false).unwrap_err().exit(), Exit::Usage);
    }
}
