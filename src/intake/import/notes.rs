//! What somebody should know of a file that was imported all the same.

use super::options::key_asked;
use super::rows::Format;
use super::work::Work;
use crate::intake::hints;
use crate::intake::lacks::{self, id_sources};
use crate::telemetry::text::{count, counted};

/// `1 record has`, `1,200 records have`.
fn have(n: u64, thing: &str) -> String {
    format!("{} {}", counted(n, thing), if n == 1 { "has" } else { "have" })
}

impl Work<'_> {
    /// What somebody should know of a file that was imported all the same.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.shape.format == Format::Csv
            && self.shape.delimiter != b','
            && self.options.delimiter.is_none()
        {
            let name = match self.shape.delimiter {
                b'\t' => "a tab".to_owned(),
                other => format!("`{}`", char::from(other)),
            };
            notes.push(format!(
                "its fields are taken to be separated by {name}; --delimiter says otherwise"
            ));
        }
        if self.repeated_headers > 0 {
            let n = counted(self.repeated_headers, "repeated header");
            notes.push(format!("{n} left out: files were put together"));
        }
        if let Some(begins) = &self.begins {
            let entry = &begins.entry;
            let what = match self.options.rest {
                true => "left out",
                false => "message IDs that are known are not sent again",
            };
            let (of, at) = (&entry.name, &entry.at);
            notes.push(match begins.unsure {
                None => format!(
                    "its first {} of `{of}`, imported at {at}: {what}",
                    match begins.last {
                        1 => format!("{} is that", self.shape.format.unit()),
                        n => format!("{} are those", counted(n, self.shape.format.unit())),
                    }
                ),
                Some(_) => format!(
                    "it begins with all of `{of}`, imported at {at}: message IDs that are known are not sent again"
                ),
            });
        }
        if let Some((line, begins)) = self.begins.as_ref().and_then(|b| Some((b.went_on?, b))) {
            let (of, at) = (&begins.entry.name, &begins.entry.at);
            notes.push(format!(
                "line {line} had no end when `{of}` was imported at {at}, and has gone on since: that import has read a part of it. The whole line is imported now; but where the part has the same message ID, that ID is known, and the whole is not sent. `sluicegate message {}:{line}` tells; to send it: `dedup forget ID`, then import a file with that line alone",
                self.name
            ));
        }
        // A JSON value that is cut off cannot be read; a row or a URL can.
        if self.ends_in_line && matches!(self.shape.format, Format::Csv | Format::Urls) {
            notes.push(format!(
                "its last line, {}, has no line end and was taken as whole: if the file is still being written, import it once it is complete",
                self.last_line
            ));
        }
        if let (n @ 1.., exact) = self.repeats.count() {
            let about = if exact { "" } else { "about " };
            let named: Vec<_> = self
                .repeats
                .named
                .iter()
                .take(3)
                .map(|(line, first)| format!("line {line} that of line {first}"))
                .collect();
            notes.push(format!(
                "{about}{} the message ID of an earlier line in it ({}): of those in one partition one record is sent",
                match n {
                    1 => "1 line repeats".to_owned(),
                    n => format!("{} lines repeat", count(n)),
                },
                named.join(", ")
            ));
            if self.shortened {
                notes.push("repeated IDs look like 1.23E+17: a spreadsheet has rounded them; export that column as text".to_owned());
            }
        }
        let goes_by_content = !self.placer.goes_by_position();
        if goes_by_content && self.without_id > 0 && self.accepted > 0 {
            let all = if self.without_id == self.accepted {
                "none of its records has"
            } else {
                "records without"
            };
            let from = id_sources(self.topic);
            let columns = match &self.header {
                Some(header) if self.without_id == self.accepted => {
                    format!("; its columns are {}", header.names().join(", "))
                }
                _ => String::new(),
            };
            notes.push(match self.without_id == self.accepted {
                true => format!("{all} a message ID where topic {} looks for it ({from}){columns}: each goes by its file and line", self.meta.name),
                false => format!("{} no message ID where topic {} looks for it ({from}): each goes by its file and line", have(self.without_id, "record"), self.meta.name),
            });
        }
        notes.extend(lacks::keys(
            self.topic,
            key_asked(self.options).as_deref(),
            self.without_key,
            self.accepted,
            &self.fields,
        ));
        if self.without_id == self.accepted && self.accepted > 0 {
            notes.extend(hints::unused_id(&self.meta.name, &self.fields));
        }
        notes
    }
}
