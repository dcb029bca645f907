//! Imports into a fake log: every form and packing, known contents, broken transactions, rejects.

mod content;
mod forms;
mod grown;
mod ids;

use super::*;
use crate::config::{IdSource, KeySource};
use crate::core::in_full::in_full;
use crate::core::record::{IMPORT_ID_HEADER, Record, SOURCE_HEADER};
use crate::intake::fake_log::{Break, FakeLog, counts, values};
use proptest::prelude::*;
use std::io::Write;

struct Case {
    folder: tempfile::TempDir,
    log: FakeLog,
    topic: TopicConfig,
}

fn case() -> Case {
    let mut topic = TopicConfig::new("t", "p");
    topic.id = vec![IdSource::Json("/id".into())];
    Case {
        folder: tempfile::tempdir().expect("folder"),
        log: FakeLog::default(),
        topic,
    }
}

impl Case {
    fn importer(&self) -> Importer {
        Importer::new(Arc::new(self.log.clone()), self.folder.path().join("spool"))
    }
    fn spec(&self) -> TopicSpec {
        TopicSpec {
            partitions: 4,
            retention: None,
            retention_bytes: None,
        }
    }
    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).expect("write");
        path
    }
    fn import(&self, name: &str, bytes: &[u8]) -> Result<ImportReport, ImportError> {
        self.import_with(name, bytes, |_| {})
    }
    fn import_with(
        &self,
        name: &str,
        bytes: &[u8],
        set: impl FnOnce(&mut ImportOptions),
    ) -> Result<ImportReport, ImportError> {
        let path = self.file(name, bytes);
        let mut options = ImportOptions::new(name);
        set(&mut options);
        self.importer()
            .import_file(&self.topic, &self.spec(), &path, &options, &mut |_| {})
    }
    fn records(&self) -> Vec<Record> {
        self.log.all("t").into_iter().flatten().collect()
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("gz");
    out.finish().expect("gz")
}

fn source(record: &Record) -> String {
    String::from_utf8_lossy(record.headers.get(SOURCE_HEADER).unwrap_or_default()).into_owned()
}

/// Sources of the records, sorted.
fn sources(case: &Case) -> Vec<String> {
    let mut sources: Vec<_> = case.records().iter().map(source).collect();
    sources.sort();
    sources
}

/// An error with its causes.
fn told(error: &ImportError) -> String {
    in_full(error)
}

const LINES: &[u8] = b"{\"id\":1}\n\n{\"id\":2}\r\n{\"id\":3}";
