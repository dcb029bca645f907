//! What a running node does for `POST /api/import` and `POST /api/send`: the same as the commands do on a stopped
//! node's folder, with errors in the form of the web API. Both block: call them on a thread that may.

use super::import::{ImportError, ImportOptions, Importer};
use super::send::{SendError, maskers, send};
use super::{section_of, topic_spec};
use crate::api::{ApiError, ImportReport, ImportRequest, SendReply, SendRequest};
use crate::config::{Config, TopicConfig};
use crate::core::in_full::in_full;
use crate::log::{Log, LogError};
use std::error::Error;
use std::io::{self, Read};
use std::path::PathBuf;

fn section(config: &Config, topic: &str) -> Result<TopicConfig, ApiError> {
    let missing = || ApiError::NotFound(format!("no section of the configuration is for topic `{topic}`"));
    section_of(config, topic).ok_or_else(missing)
}

/// Imports what comes out of a reader. Rejects are kept below the data folder, a file for each topic and name.
pub fn import_upload(
    importer: &Importer,
    config: &Config,
    request: &ImportRequest,
    reader: &mut dyn Read,
) -> Result<ImportReport, ApiError> {
    let topic = section(config, &request.topic)?;
    let usual = ImportOptions::of_request(request).map_err(ApiError::Invalid)?;
    let mut options = usual.within(config.log.segment);
    let folder = config.node.data.join("rejects");
    crate::files::folder(&folder).map_err(|e| failed(&e, &e))?;
    options.rejects = Some(folder.join(reject_name(&request.topic, &request.name)));
    let done = importer.import_reader(&topic, &topic_spec(config, &topic), reader, &options, &mut |_| {});
    done.map_err(|e| match &e {
        // The spool and the rejects are files of ours; anything else that fails to read is the upload.
        ImportError::Write { source, .. } => failed(&e, source),
        ImportError::Log(log) => refused(&e, log),
        ImportError::Ending { .. } => ApiError::Unavailable(e.to_string()),
        _ => ApiError::Invalid(in_full(&e)),
    })
}

/// Appends one record.
pub fn send_record(log: &dyn Log, config: &Config, request: &SendRequest) -> Result<SendReply, ApiError> {
    let topic = section(config, &request.topic)?;
    let maskers = maskers(config, &topic);
    let sent = send(log, &topic, &topic_spec(config, &topic), &maskers, request);
    sent.map_err(|e| match &e {
        SendError::Log(log) => refused(&e, log),
        SendError::NoRoom(_) => ApiError::NoRoom(in_full(&e)),
        _ => ApiError::Invalid(in_full(&e)),
    })
}

/// A name that is one file below the folder, whatever was sent.
fn reject_name(topic: &str, name: &str) -> PathBuf {
    let safe = |text: &str| -> String {
        let keep = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        };
        text.chars().map(keep).take(100).collect()
    };
    format!(
        "{}--{}.rejects",
        safe(topic),
        safe(name.rsplit('/').next().unwrap_or(name))
    )
    .into()
}

fn failed(error: &dyn Error, source: &io::Error) -> ApiError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ApiError::NoRoom(in_full(error)),
        _ => ApiError::Internal(in_full(error)),
    }
}

fn refused(error: &dyn Error, log: &LogError) -> ApiError {
    match log {
        LogError::NoRoom { .. } => ApiError::NoRoom(in_full(error)),
        LogError::Busy { .. } | LogError::Closed => ApiError::Unavailable(in_full(error)),
        LogError::TooLarge { limit, .. } => ApiError::TooLarge { limit: *limit },
        LogError::Partitions { .. } => ApiError::Invalid(in_full(error)),
        _ => ApiError::Internal(in_full(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::fake_log::{FakeLog, values};
    use std::sync::Arc;

    #[test]
    fn an_upload_is_imported_and_its_rejects_stay_below_the_data_folder() {
        let folder = tempfile::tempdir().expect("folder");
        let config = Config::for_test(folder.path()).with_topic(TopicConfig::new("t", "p"));
        let log = FakeLog::default();
        let importer = Importer::new(Arc::new(log.clone()), folder.path().join("spool"));
        let request = |topic: &str, name: &str| ImportRequest {
            topic: topic.into(),
            name: name.into(),
            ..ImportRequest::default()
        };
        let import = |request: &ImportRequest, mut bytes: &[u8]| {
            import_upload(&importer, &config, request, &mut bytes)
        };
        let report = import(&request("t", "../../x.jsonl"), b"{\"id\":1}\nbad\n").expect("import");
        assert_eq!((report.accepted, report.rejected), (1, 1));
        let rejects = folder.path().join("rejects").join("t--x.jsonl.rejects");
        assert_eq!(report.reject_file, Some(rejects.display().to_string()));
        // Another upload of that name keeps its own, and takes nothing away from the first.
        let second = import(&request("t", "x.jsonl"), b"{\"id\":3}\nother\n").expect("import");
        let own = second.reject_file.expect("rejects");
        import(&request("t", "x.jsonl"), b"{\"id\":4}\n").expect("a clean one");
        let read = |path: &str| std::fs::read_to_string(path).expect("rejects");
        assert!(read(&own).contains("other") && read(&rejects.display().to_string()).contains("bad"));
        assert!(matches!(
            import(&request("u", "x.jsonl"), b""),
            Err(ApiError::NotFound(_))
        ));
        assert!(matches!(
            import(&request("t", "x"), b"?"),
            Err(ApiError::Invalid(_))
        ));
        let record = SendRequest {
            topic: "t".into(),
            value: "{}".into(),
            ..SendRequest::default()
        };
        send_record(&log, &config, &record).expect("send");
        assert_eq!(
            values(&log, "t"),
            ["{\"id\":1}", "{\"id\":3}", "{\"id\":4}", "{}"]
        );
        // A full disk is named, however large the record.
        log.refuse("no room for a new segment");
        let large = SendRequest {
            value: "x".repeat(3 << 20),
            ..record
        };
        let refused = send_record(&log, &config, &large).expect_err("full");
        assert!(
            matches!(&refused, ApiError::NoRoom(why) if why.contains("no room for a new segment")),
            "{refused}"
        );
    }
}
