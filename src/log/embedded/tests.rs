//! Tests of the log as a whole: the conformance suite, crashes, damage, full disks.

use super::*;
use crate::log::conformance::{self, Subject};

struct Folder {
    dir: tempfile::TempDir,
    options: EmbeddedOptions,
}

impl Folder {
    fn new(options: EmbeddedOptions) -> Self {
        Self {
            dir: tempfile::tempdir().expect("a folder"),
            options,
        }
    }
}

impl Subject for Folder {
    fn open(&self) -> Arc<dyn Log> {
        Arc::new(EmbeddedLog::open(self.dir.path(), self.options.clone()).expect("opens"))
    }
}

#[test]
fn conforms() {
    for (name, case) in conformance::ALL {
        eprintln!("{name}");
        case(&Folder::new(EmbeddedOptions::small()));
    }
}
