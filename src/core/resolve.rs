//! What a record is to a route: filtered, a message with its ID and key, or nothing that can be sent. Pure.

use super::expr::{Expr, ExprError, RecordScope, Vocabulary};
use super::ledger::entry::BudgetDraw;
use super::message_id::{IdScope, budget_by, key_hash};
use super::readable_id;
use super::record::Record;
use super::turnstile::Draws;
use super::types::{KeyHash, MessageId};
use crate::config::{IdMissing, IdSource, KeyMissing, KeySource};
use bytes::Bytes;
use serde_json::Value;
use std::borrow::Cow;

/// What a record is to a route.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolved {
    /// A message to be delivered.
    Message(Known),
    /// Not for this route: finished at once.
    Filtered,
    /// Passed over by a rule, with its reason: kept in the ledger.
    Skipped(Known, String),
    /// It cannot be a message (no ID, no key): a dead letter with this reason.
    Invalid(Known, String),
}

/// What is known of a record's message.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The message.
    pub id: MessageId,
    /// Its key; none: it goes unordered.
    pub key: Option<KeyHash>,
    /// The readable ID.
    pub readable: Bytes,
}

/// A budget that a route's messages draw from.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetRule {
    /// Hash of its name.
    pub budget: u64,
    /// JSON pointer of the value that splits it.
    pub by: Option<String>,
}

/// Which of a topic's records are a route's.
#[derive(Clone, Debug)]
pub enum Share {
    /// All.
    All,
    /// Those whose field names this partner. `unknown`: also those that name none of these; they are dead letters.
    Named {
        /// JSON pointer of the field.
        pointer: String,
        /// This partner.
        partner: String,
        /// All partners, where this route takes what names none of them.
        unknown: Option<Vec<String>>,
    },
}

/// The settings of a resolver.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Parts of the ID.
    pub id: Vec<IdSource>,
    /// The unit of order.
    pub key: KeySource,
    /// A record without key.
    pub key_missing: KeyMissing,
    /// A record without ID.
    pub id_missing: IdMissing,
    /// Filter.
    pub when: Option<String>,
    /// Which records are the route's.
    pub share: Share,
    /// Budgets of the partner.
    pub budgets: Vec<BudgetRule>,
}

/// Says what a record is. One for each route partition.
pub struct Resolver {
    scope: IdScope,
    topic: String,
    partition: u32,
    rules: Rules,
    when: Option<Expr>,
    reads_json: bool,
}

/// The key that all records without one share (`key_missing = "together"`).
const TOGETHER: &[u8] = b"\0together";

impl Resolver {
    /// Compiles the rules.
    ///
    /// # Errors
    /// If the filter cannot be read; the configuration was checked for that.
    pub fn try_new(scope: IdScope, topic: &str, partition: u32, rules: Rules) -> Result<Self, ExprError> {
        let when = match &rules.when {
            Some(text) => Some(Expr::compile(text, Vocabulary::Record)?),
            None => None,
        };
        let reads_json = matches!(rules.key, KeySource::Json(_))
            || rules.id.iter().any(|id| matches!(id, IdSource::Json(_)))
            || matches!(rules.share, Share::Named { .. });
        Ok(Self {
            scope,
            topic: topic.to_owned(),
            partition,
            rules,
            when,
            reads_json,
        })
    }

    /// What the record is.
    pub fn resolve(&self, record: &Record) -> Resolved {
        if let Some(when) = &self.when {
            let scope = RecordScope {
                topic: &self.topic,
                partition: self.partition,
                record,
            };
            if !when.test(&scope) {
                return Resolved::Filtered;
            }
        }
        let json: Option<Value> = if self.reads_json {
            serde_json::from_slice(&record.value).ok()
        } else {
            None
        };
        let unknown = match self.share(json.as_ref()) {
            Ok(unknown) => unknown,
            Err(NotOurs) => return Resolved::Filtered,
        };
        let mut why = unknown;
        let parts: Vec<Option<Cow<'_, [u8]>>> = self
            .rules
            .id
            .iter()
            .map(|source| id_part(source, record, json.as_ref()))
            .collect();
        let (id, readable) = if self.rules.id.contains(&IdSource::Position) {
            (
                self.scope.position(record.offset),
                Bytes::from(readable_id::of_position(record.offset)),
            )
        } else if parts.iter().all(Option::is_some) {
            let parts: Vec<&[u8]> = parts.iter().flatten().map(|p| &p[..]).collect();
            (self.scope.id(&parts), Bytes::from(readable_id::join(&parts)))
        } else {
            if self.rules.id_missing == IdMissing::Dead && why.is_none() {
                why = Some("no_id: the record has no message ID".into());
            }
            (
                self.scope.position(record.offset),
                Bytes::from(readable_id::of_position(record.offset)),
            )
        };
        let key = match (&self.rules.key, json.as_ref()) {
            (KeySource::Record, _) => record.key.as_deref().map(Cow::Borrowed),
            (KeySource::Json(pointer), Some(json)) => text_at(json, pointer),
            (KeySource::Json(_), None) => None,
        };
        let key = match (key, self.rules.key_missing) {
            (Some(key), _) => Some(key_hash(&key)),
            (None, KeyMissing::Unordered) => None,
            (None, KeyMissing::Together) => Some(key_hash(TOGETHER)),
            (None, KeyMissing::Dead) => {
                why.get_or_insert_with(|| "no_key: the record has no key".into());
                None
            }
        };
        let known = Known { id, key, readable };
        match why {
            Some(reason) => Resolved::Invalid(known, reason),
            None => Resolved::Message(known),
        }
    }

    /// The budgets that a start of this record draws from.
    pub fn draws(&self, record: &Record) -> Draws {
        let split = self.rules.budgets.iter().any(|b| b.by.is_some());
        let json: Option<Value> = if split {
            serde_json::from_slice(&record.value).ok()
        } else {
            None
        };
        let draw = |rule: &BudgetRule| {
            let by = rule.by.as_ref().map_or(0, |pointer| {
                let value = json.as_ref().and_then(|json| text_at(json, pointer));
                budget_by(value.as_deref().unwrap_or_default())
            });
            BudgetDraw {
                budget: rule.budget,
                by,
            }
        };
        self.rules.budgets.iter().map(draw).collect()
    }

    /// Whether the record is the route's; if it names no partner there is, why it is a dead letter.
    fn share(&self, json: Option<&Value>) -> Result<Option<String>, NotOurs> {
        let Share::Named {
            pointer,
            partner,
            unknown,
        } = &self.rules.share
        else {
            return Ok(None);
        };
        let named = json.and_then(|json| text_at(json, pointer));
        match (named, unknown) {
            (Some(name), _) if *name == *partner.as_bytes() => Ok(None),
            (Some(name), Some(all)) if !all.iter().any(|p| p.as_bytes() == &name[..]) => Ok(Some(format!(
                "no_partner: there is no partner `{}`",
                String::from_utf8_lossy(&name)
            ))),
            (None, Some(_)) => Ok(Some(format!("no_partner: nothing at {pointer} names a partner"))),
            _ => Err(NotOurs),
        }
    }
}

/// The record is another route's.
struct NotOurs;

fn id_part<'a>(source: &IdSource, record: &'a Record, json: Option<&'a Value>) -> Option<Cow<'a, [u8]>> {
    let part: Cow<'a, [u8]> = match source {
        IdSource::Header(name) => Cow::Borrowed(record.headers.get(name)?),
        IdSource::Json(pointer) => text_at(json?, pointer)?,
        IdSource::Key => Cow::Borrowed(record.key.as_deref()?),
        IdSource::Hash => Cow::Owned(readable_id::of_value(&record.value).into_bytes()),
        IdSource::Query(name) => {
            let url = url::Url::parse(std::str::from_utf8(&record.value).ok()?.trim()).ok()?;
            let value = url.query_pairs().find(|(n, _)| n == name)?.1.into_owned();
            Cow::Owned(value.into_bytes())
        }
        IdSource::Position => Cow::Owned(record.offset.to_be_bytes().to_vec()),
    };
    (!part.is_empty()).then_some(part)
}

/// A scalar at a pointer, as text; objects and arrays in their compact form; null is nothing.
fn text_at<'a>(json: &'a Value, pointer: &str) -> Option<Cow<'a, [u8]>> {
    match json.pointer(pointer)? {
        Value::Null => None,
        Value::String(text) => Some(Cow::Borrowed(text.as_bytes())),
        other => Some(Cow::Owned(other.to_string().into_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::TopicId;

    fn rules() -> Rules {
        Rules {
            id: vec![IdSource::Json("/id".into())],
            key: KeySource::Json("/user".into()),
            key_missing: KeyMissing::Unordered,
            id_missing: IdMissing::Dead,
            when: None,
            share: Share::All,
            budgets: vec![],
        }
    }

    fn resolve(rules: Rules, value: &str) -> Resolved {
        let scope = IdScope::new("t", TopicId(1), 0, "p");
        let resolver = Resolver::try_new(scope, "t", 0, rules).expect("rules that compile");
        resolver.resolve(&Record {
            value: Bytes::from(value.to_owned()),
            offset: 5,
            ..Record::default()
        })
    }

    #[test]
    fn a_message_has_the_id_and_key_its_rules_name() {
        let Resolved::Message(one) = resolve(rules(), r#"{"id": 7, "user": "u"}"#) else {
            panic!()
        };
        let Resolved::Message(same) = resolve(rules(), r#"{"user":"u","id":7,"more":1}"#) else {
            panic!()
        };
        let Resolved::Message(other) = resolve(rules(), r#"{"id":8,"user":"u"}"#) else {
            panic!()
        };
        assert_eq!(one, same);
        assert_eq!(&one.readable[..], b"7");
        assert!(one.id != other.id && one.key == other.key && one.key.is_some());
    }

    #[test]
    fn what_is_missing_goes_by_its_rule() {
        assert!(matches!(resolve(rules(), "{}"), Resolved::Invalid(_, why) if why.starts_with("no_id")));
        let by_position = Rules {
            id_missing: IdMissing::Position,
            ..rules()
        };
        let Resolved::Message(known) = resolve(by_position.clone(), "not json") else {
            panic!()
        };
        assert_eq!(known.key, None);
        let together = Rules {
            key_missing: KeyMissing::Together,
            ..by_position.clone()
        };
        assert!(matches!(resolve(together, "{}"), Resolved::Message(k) if k.key.is_some()));
        let dead = Rules {
            key_missing: KeyMissing::Dead,
            ..by_position
        };
        assert!(matches!(resolve(dead, "{}"), Resolved::Invalid(_, why) if why.starts_with("no_key")));
    }

    #[test]
    fn a_field_names_the_partner() {
        let named = |partner: &str, all: Option<&[&str]>| Rules {
            share: Share::Named {
                pointer: "/to".into(),
                partner: partner.into(),
                unknown: all.map(|a| a.iter().map(|s| s.to_string()).collect()),
            },
            ..rules()
        };
        let both: &[&str] = &["a", "b"];
        let to_a = r#"{"id":1,"to":"a"}"#;
        assert!(matches!(
            resolve(named("a", Some(both)), to_a),
            Resolved::Message(_)
        ));
        assert_eq!(resolve(named("b", None), to_a), Resolved::Filtered);
        let lost = r#"{"id":1,"to":"c"}"#;
        assert!(
            matches!(resolve(named("a", Some(both)), lost), Resolved::Invalid(_, why) if why.contains("`c`"))
        );
        assert_eq!(resolve(named("b", None), lost), Resolved::Filtered);
    }

    #[test]
    fn a_filter_passes_what_it_names() {
        let some = Rules {
            when: Some("value.kind == \"x\"".into()),
            ..rules()
        };
        assert_eq!(
            resolve(some.clone(), r#"{"id":1,"kind":"y"}"#),
            Resolved::Filtered
        );
        assert!(matches!(
            resolve(some, r#"{"id":1,"kind":"x"}"#),
            Resolved::Message(_)
        ));
    }
}
