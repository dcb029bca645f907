//! The documentation keeps its word: links lead somewhere, and configuration in it loads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every page that people read.
fn pages() -> Vec<(PathBuf, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("docs") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
        .into_iter()
        .map(|f| {
            let text = std::fs::read_to_string(&f).expect("a page");
            (f, text)
        })
        .collect()
}

/// A page without what stands in fences.
fn prose(text: &str) -> String {
    let mut inside = false;
    text.lines()
        .filter(|line| {
            if line.trim_start().starts_with("```") {
                inside = !inside;
                return false;
            }
            !inside
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The name that a heading gets as a link's target: lower case, blanks to dashes, most signs dropped.
fn anchors(text: &str) -> BTreeSet<String> {
    prose(text)
        .lines()
        .filter(|l| l.starts_with('#'))
        .map(|l| {
            l.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                    _ => None,
                })
                .collect()
        })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut checked = 0;
    for (page, text) in pages() {
        let prose = prose(&text);
        for part in prose.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            if target.starts_with("http://") || target.starts_with("https://") {
                continue;
            }
            checked += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => page.clone(),
                file => page.parent().expect("a folder").join(file),
            };
            let there = path.exists()
                && (anchor.is_empty()
                    || std::fs::read_to_string(&path).is_ok_and(|t| anchors(&t).contains(anchor)));
            if !there {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(checked > 20, "only {checked} links found");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_can_be_found_from_the_index() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let index = std::fs::read_to_string(docs.join("README.md")).expect("docs/README.md");
    let missing: Vec<_> = pages()
        .into_iter()
        .filter_map(|(p, _)| Some(p.strip_prefix(&docs).ok()?.to_str()?.to_owned()))
        .filter(|p| p != "README.md" && !index.contains(&format!("]({p})")))
        .collect();
    assert!(missing.is_empty(), "not in docs/README.md: {missing:?}");
}

/// Blocks marked `toml`, with the line they begin at.
fn snippets(text: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    let mut current: Option<(usize, String)> = None;
    for (n, line) in text.lines().enumerate() {
        match &mut current {
            None if line.trim() == "```toml" => current = Some((n + 2, String::new())),
            None => {}
            Some(_) if line.trim() == "```" => out.extend(current.take()),
            Some((_, block)) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    out
}

/// Makes a whole configuration of a piece: what it refers to is added, keys without a section are a partner's or a
/// topic's.
fn completions(snippet: &str) -> Vec<String> {
    if !snippet.lines().any(|l| l.starts_with('[')) {
        return vec![
            format!("[partners.p]\nurl = \"http://127.0.0.1:1/\"\n{snippet}"),
            format!("[partners.p]\n{snippet}"),
            format!("[partners.p]\nurl = \"http://127.0.0.1:1/\"\n[topics.t]\npartner = \"p\"\n{snippet}"),
            format!("[topics.t]\n{snippet}\n[partners.acme]\nurl = \"http://127.0.0.1:1/\""),
        ];
    }
    let mut whole = snippet.to_owned();
    let secret = regex::Regex::new(r"secret\('([^']+)'\)").expect("a pattern");
    let names: BTreeSet<_> = secret
        .captures_iter(snippet)
        .map(|c| c[1].to_owned())
        .filter(|name| !snippet.contains(&format!("\n{name} = {{")))
        .collect();
    if !names.is_empty() && !snippet.contains("[secrets]") {
        whole.push_str("\n[secrets]\n");
        for name in names {
            whole.push_str(&format!("{name} = {{ env = \"SOME_SECRET\" }}\n"));
        }
    }
    let partner = regex::Regex::new(r#"partner\s*=\s*"([a-z0-9-]+)""#).expect("a pattern");
    let partners: BTreeSet<_> = partner
        .captures_iter(snippet)
        .map(|c| c[1].to_owned())
        .filter(|name| !snippet.contains(&format!("[partners.{name}]")))
        .collect();
    for name in partners {
        whole.push_str(&format!("\n[partners.{name}]\nurl = \"http://127.0.0.1:1/\"\n"));
    }
    vec![whole]
}

#[test]
fn every_piece_of_configuration_loads() {
    let mut wrong = Vec::new();
    let mut loaded = 0;
    for (page, text) in pages() {
        for (line, snippet) in snippets(&text) {
            let place = format!("{}:{line}", page.display());
            let results: Vec<_> = completions(&snippet)
                .iter()
                .map(|whole| sluicegate::config::load_text(&place, whole))
                .collect();
            match results.iter().any(Result::is_ok) {
                true => loaded += 1,
                false => wrong.push(format!(
                    "{place}: {:#?}",
                    results
                        .into_iter()
                        .filter_map(Result::err)
                        .map(|findings| findings.iter().map(ToString::to_string).collect::<Vec<_>>())
                        .collect::<Vec<_>>()
                )),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(loaded >= 5, "only {loaded} pieces found");
}

/// Every source file of the crate, without its tests.
fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("src") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).expect("a source");
                let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
                files.push((path, text[..end].to_owned()));
            }
        }
    }
    files
}

#[test]
fn every_log_line_has_an_event_and_every_event_is_documented() {
    let line = regex::Regex::new(r"(?s)(?:tracing::(?:error|warn|info|debug|trace)|about)!\((.*?)\)[;,]?\n")
        .expect("a pattern");
    let event = regex::Regex::new(r#"event = "([a-z_]+)""#).expect("a pattern");
    let mut written = BTreeSet::new();
    for (path, text) in sources() {
        let code: String = text
            .lines()
            .filter(|l| !l.trim_start().starts_with("//"))
            .map(|l| format!("{l}\n"))
            .collect();
        for found in line.captures_iter(&code) {
            let event = event
                .captures(&found[1])
                .unwrap_or_else(|| panic!("{}: a log line without event: {}", path.display(), &found[0]));
            written.insert(event[1].to_owned());
        }
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/logs.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let (_, table) = page.split_once("## Events").expect("the table of events");
    let name = regex::Regex::new("`([a-z_]+)`").expect("a pattern");
    let documented: BTreeSet<String> = table
        .lines()
        .filter_map(|row| row.strip_prefix("| `").and_then(|_| row.split('|').nth(1)))
        .flat_map(|cell| {
            name.captures_iter(cell)
                .map(|n| n[1].to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(written, documented);
}
