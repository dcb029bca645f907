//! What a record is to a route: filtered, a message with its ID and key, or nothing that can be sent. Pure.
//!
//! On the path of every record: JSON is walked once, for all pointers together, and no tree is built.

use super::expr::{Expr, ExprError, RecordScope, Vocabulary};
use super::identity::{Content, HeadersOf, Id, Identified, Recipe};
use super::ledger::entry::{BudgetDraw, SkipMatch, SkipRule};
use super::mask::Masker;
use super::message_id::{IdScope, budget_by, key_hash};
use super::pointer::{Extracted, PointerError, Pointers, Unreadable};
use super::readable_id;
use super::record::{IMPORT_ID_HEADER, Record};
use super::shown::last_name;
use super::turnstile::Draws;
use super::types::{KeyHash, MessageId, Time};
use crate::config::{IdMissing, IdSource, KeyMissing, KeySource};
use bytes::Bytes;
use hashbrown::HashMap;
use smallvec::SmallVec;

/// What a record is to a route.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolved {
    /// A message to be delivered.
    Message(Known),
    /// Not for this route: finished at once.
    Filtered,
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

/// Why rules cannot be compiled; the configuration was checked for it.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The filter cannot be read.
    #[error("the route's filter cannot be read")]
    When(#[from] ExprError),
    /// A pointer is none.
    #[error(transparent)]
    Pointer(#[from] PointerError),
}

/// Skip rules of one route, by what they match.
#[derive(Clone, Debug, Default)]
pub struct Skips {
    keys: HashMap<KeyHash, (String, Option<Time>)>,
    ids: HashMap<MessageId, (String, Option<Time>)>,
}

impl Skips {
    /// Those of `rules` that are for this topic and partner. A rule's message ID is read as every command reads one: it
    /// holds for each message that the text may stand for in this scope ([`readable_id::meanings`]).
    pub fn of<'r>(
        rules: impl IntoIterator<Item = &'r SkipRule>,
        topic: &str,
        partner: &str,
        scope: &IdScope,
    ) -> Self {
        let mut skips = Self::default();
        for rule in rules {
            if rule.topic != topic || rule.partner.as_ref().is_some_and(|p| p != partner) {
                continue;
            }
            let why = (format!("rule {}: {}", rule.rule, rule.reason), rule.expires);
            match &rule.matches {
                SkipMatch::Key(key) => drop(skips.keys.insert(key_hash(key), why)),
                SkipMatch::Id(id) => match std::str::from_utf8(id) {
                    Ok(text) => {
                        let meant = readable_id::meanings(text, scope);
                        skips
                            .ids
                            .extend(meant.into_iter().map(|(_, id)| (id, why.clone())));
                    }
                    Err(_) => drop(skips.ids.insert(scope.id(&[id]), why)),
                },
            }
        }
        skips
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ids.is_empty()
    }

    /// Why a message of this key and ID is passed over, if it is.
    pub fn reason(&self, key: Option<KeyHash>, id: &MessageId, now: Time) -> Option<&str> {
        let holds = |rule: &&(String, Option<Time>)| rule.1.is_none_or(|end| now < end);
        let by_key = key.and_then(|key| self.keys.get(&key));
        let by_id = || self.ids.get(id);
        let rule = by_key.filter(holds).or_else(|| by_id().filter(holds))?;
        Some(&rule.0)
    }
}

/// Says what a record is. One for each route partition.
pub struct Resolver {
    scope: IdScope,
    topic: String,
    partition: u32,
    rules: Rules,
    when: Option<Expr>,
    /// Picks the field that names the partner, too.
    recipe: Recipe,
    /// Of what splits budgets, in the budgets' order.
    splits: Pointers,
    /// Draws from budgets that nothing splits; whole where none is split.
    whole: Draws,
}

/// The key that all records without one share (`key_missing = "together"`).
const TOGETHER: &[u8] = b"\0together";

type Picked<'a> = SmallVec<[Option<Extracted<'a>>; 4]>;

impl Resolver {
    /// Compiles the rules.
    ///
    /// # Errors
    /// If the filter or a pointer cannot be read; the configuration was checked for that.
    pub fn try_new(scope: IdScope, topic: &str, partition: u32, rules: Rules) -> Result<Self, RulesError> {
        let when = match &rules.when {
            Some(text) => Some(Expr::compile(text, Vocabulary::Record)?),
            None => None,
        };
        let splits: Vec<&str> = rules.budgets.iter().filter_map(|b| b.by.as_deref()).collect();
        let share: &[&str] = match &rules.share {
            Share::Named { pointer, .. } => &[pointer],
            Share::All => &[],
        };
        let whole = |rule: &BudgetRule| BudgetDraw {
            budget: rule.budget,
            by: 0,
        };
        Ok(Self {
            scope,
            topic: topic.to_owned(),
            partition,
            when,
            recipe: Recipe::try_new(&rules.id, &rules.key, share, &splits)?,
            splits: Pointers::compile(&splits)?,
            whole: rules.budgets.iter().map(whole).collect(),
            rules,
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
            match when.try_test(&scope) {
                Ok(true) => {}
                Ok(false) => return Resolved::Filtered,
                // Text that never meant to be JSON has no fields; half an object is another matter.
                Err(Unreadable::NotJson(_)) if !looks_like_json(&record.value) => {
                    if !when.test(&scope) {
                        return Resolved::Filtered;
                    }
                }
                Err(fault) => {
                    return Resolved::Invalid(
                        self.by_place(record),
                        format!("invalid: the condition of the route cannot be answered: {fault}"),
                    );
                }
            }
        }
        let mut found = match self.recipe.identify(Content {
            key: record.key.as_deref(),
            value: &record.value,
            headers: HeadersOf::Record(&record.headers),
        }) {
            Ok(found) => found,
            Err(twice) => return Resolved::Invalid(self.by_place(record), format!("invalid: {twice}")),
        };
        let named = found.more.pop().flatten();
        let mut why = match self.share(named) {
            Ok(unknown) => unknown,
            Err(NotOurs) => return Resolved::Filtered,
        };
        let (id, readable) = match self.id(&found).or_else(|| self.import_id(record)) {
            Some(known) => known,
            None => {
                if found.id == Id::Missing && self.rules.id_missing == IdMissing::Dead && why.is_none() {
                    why = Some(missing("no_id: the record has no message ID", &found));
                }
                let Known { id, readable, .. } = self.by_place(record);
                (id, readable)
            }
        };
        let key = found.order_key();
        let key = match (key, self.rules.key_missing) {
            (Some(key), _) => Some(key_hash(key)),
            (None, KeyMissing::Unordered) => None,
            (None, KeyMissing::Together) => Some(key_hash(TOGETHER)),
            (None, KeyMissing::Dead) => {
                why.get_or_insert_with(|| missing("no_key: the record has no key", &found));
                None
            }
        };
        let known = Known { id, key, readable };
        match why {
            Some(reason) => Resolved::Invalid(known, reason),
            None => Resolved::Message(known),
        }
    }

    /// The ID made of its parts; none if one is missing, or if the position is one.
    fn id(&self, found: &Identified<'_>) -> Option<(MessageId, Bytes)> {
        let Id::Of(parts) = &found.id else { return None };
        let parts: SmallVec<[&[u8]; 4]> = parts.iter().map(|p| &p[..]).collect();
        Some((self.scope.id(&parts), Bytes::from(readable_id::join(&parts))))
    }

    /// The ID that an import gave a line without one.
    fn import_id(&self, record: &Record) -> Option<(MessageId, Bytes)> {
        if self.recipe.goes_by_position() {
            return None;
        }
        let given = record.headers.get(IMPORT_ID_HEADER)?;
        Some((self.scope.id(&[given]), Bytes::copy_from_slice(given)))
    }

    /// The record named by its position alone.
    fn by_place(&self, record: &Record) -> Known {
        Known {
            id: self.scope.position(record.offset),
            key: None,
            readable: Bytes::from(readable_id::of_position(record.offset)),
        }
    }

    /// The budgets that a start of this record draws from.
    pub fn draws(&self, record: &Record) -> Draws {
        if self.splits.is_empty() {
            return self.whole.clone();
        }
        let mut picked = pick(&self.splits, &record.value).into_iter();
        let draw = |rule: &BudgetRule| {
            let by = if rule.by.is_some() {
                let value = picked.next().flatten();
                budget_by(value.as_ref().map_or(b"", |v| v.text.as_bytes()))
            } else {
                0
            };
            BudgetDraw {
                budget: rule.budget,
                by,
            }
        };
        self.rules.budgets.iter().map(draw).collect()
    }

    /// Whether the record is the route's; if it names no partner there is, why it is a dead letter.
    fn share(&self, named: Option<Extracted<'_>>) -> Result<Option<String>, NotOurs> {
        let Share::Named {
            pointer,
            partner,
            unknown,
        } = &self.rules.share
        else {
            return Ok(None);
        };
        match (named, unknown) {
            (Some(name), _) if name.text == *partner => Ok(None),
            (Some(name), Some(all)) if !all.iter().any(|p| *p == name.text) => Ok(Some(
                match is_name(&name.text) && !Masker::default().hides(last_name(pointer)) {
                    true => format!("no_partner: there is no partner `{}`", name.text),
                    false => format!("no_partner: the text at {pointer} is no partner's name"),
                },
            )),
            (None, Some(_)) => Ok(Some(format!("no_partner: nothing at {pointer} names a partner"))),
            _ => Err(NotOurs),
        }
    }
}

/// Whether a text may be a partner's name, and so be shown: what else a record says may be anybody's secret (I9).
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.bytes().any(|b| b.is_ascii_alphabetic())
}

/// The record is another route's.
struct NotOurs;

/// The values of all pointers; nothing of what is not JSON.
fn pick<'a>(pointers: &Pointers, value: &'a [u8]) -> Picked<'a> {
    let mut picked: Picked<'a> = SmallVec::from_elem(None, pointers.len());
    if !pointers.is_empty() && pointers.extract(value, &mut picked).is_err() {
        picked.fill(None);
    }
    picked
}

/// What is missing, and why if the whole value cannot be read.
fn missing(what: &str, found: &Identified<'_>) -> String {
    match &found.not_json {
        Some(error) => format!("{what}: its value is {error}"),
        None => what.to_owned(),
    }
}

/// Whether a value begins as an object or array does.
fn looks_like_json(value: &[u8]) -> bool {
    matches!(value.trim_ascii_start().first(), Some(b'{' | b'['))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::record::Headers;
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

    fn scope() -> IdScope {
        IdScope::new("t", TopicId(1), 0, "p")
    }

    fn resolve(rules: Rules, value: &str) -> Resolved {
        let resolver = Resolver::try_new(scope(), "t", 0, rules).expect("rules that compile");
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
    fn an_imported_line_without_id_has_that_of_its_import() {
        let line = |value: &str, rules: Rules| {
            let record = Record {
                offset: 17,
                value: Bytes::copy_from_slice(value.as_bytes()),
                headers: Headers::encode([(IMPORT_ID_HEADER, &b"c0ffee:3"[..])]),
                ..Record::default()
            };
            let resolver = Resolver::try_new(scope(), "t", 0, rules).expect("rules that compile");
            match resolver.resolve(&record) {
                Resolved::Message(known) => known,
                other => panic!("{other:?}"),
            }
        };
        let given = line("{}", rules());
        assert_eq!(
            (given.id, &given.readable[..]),
            (scope().id(&[b"c0ffee:3"]), &b"c0ffee:3"[..])
        );
        assert_eq!(
            &line(r#"{"id":7}"#, rules()).readable[..],
            b"7",
            "its own goes first"
        );
        let id_missing = IdMissing::Position;
        assert_eq!(
            line(
                "{}",
                Rules {
                    id_missing,
                    ..rules()
                }
            ),
            given
        );
        let id = vec![IdSource::Position];
        assert_eq!(line("{}", Rules { id, ..rules() }).id, scope().position(17));
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
        // What a record says in the place of a name is not shown, unless it may be one.
        let long = "x".repeat(65);
        for secret in [
            "jane.doe@example.org",
            "SECRET NAME",
            "447700900123",
            &long,
            "a/b",
        ] {
            let value = serde_json::json!({ "id": 1, "to": secret }).to_string();
            let Resolved::Invalid(_, why) = resolve(named("a", Some(both)), &value) else {
                panic!("{secret}")
            };
            assert_eq!(why, "no_partner: the text at /to is no partner's name");
        }
    }

    #[test]
    fn a_skip_rule_matches_exactly_and_until_it_ends() {
        let rule = |matches, expires| SkipRule {
            rule: 3,
            topic: "t".into(),
            partner: None,
            matches,
            reason: "poison".into(),
            made: Time(1),
            expires,
        };
        let rules = [
            rule(SkipMatch::Key(Bytes::from_static(b"u")), Some(Time(100))),
            rule(SkipMatch::Id(Bytes::from_static(b"7")), None),
        ];
        let skips = Skips::of(&rules, "t", "p", &scope());
        let (u, v) = (Some(key_hash(b"u")), Some(key_hash(b"v")));
        let (one, seven) = (scope().id(&[b"1"]), scope().id(&[b"7"]));
        assert_eq!(skips.reason(u, &one, Time(99)), Some("rule 3: poison"));
        assert_eq!(skips.reason(u, &one, Time(100)), None);
        assert_eq!(skips.reason(v, &one, Time(1)), None);
        assert!(skips.reason(v, &seven, Time(500)).is_some());
        assert!(Skips::of(&rules, "other", "p", &scope()).is_empty());
    }

    /// Lists show a message without an ID as `@17`, one whose text was cut as its hash: a rule that named one so was
    /// accepted and skipped nothing.
    #[test]
    fn a_skip_rule_takes_an_id_as_lists_show_it() {
        let text = scope().id(&[b"a"]);
        let parts = scope().id(&[b"a|b", b"c"]);
        for (shown, means) in [
            ("@17".to_owned(), scope().position(17)),
            ("17".to_owned(), scope().position(17)),
            ("a".to_owned(), text),
            ("a\\|b|c".to_owned(), parts),
            (parts.to_string(), parts),
        ] {
            let rule = SkipRule {
                rule: 1,
                topic: "t".into(),
                partner: None,
                matches: SkipMatch::Id(Bytes::from(shown.clone())),
                reason: "x".into(),
                made: Time(1),
                expires: None,
            };
            let skips = Skips::of([&rule], "t", "p", &scope());
            assert!(skips.reason(None, &means, Time(1)).is_some(), "{shown}");
            assert!(
                skips.reason(None, &scope().position(18), Time(1)).is_none(),
                "{shown}"
            );
        }
    }

    #[test]
    fn a_split_budget_is_drawn_from_by_its_value() {
        let split = Rules {
            budgets: vec![
                BudgetRule { budget: 1, by: None },
                BudgetRule {
                    budget: 2,
                    by: Some("/app".into()),
                },
            ],
            ..rules()
        };
        let scope = IdScope::new("t", TopicId(1), 0, "p");
        let resolver = Resolver::try_new(scope, "t", 0, split).expect("rules that compile");
        let draws = |value: &str| {
            resolver.draws(&Record {
                value: Bytes::from(value.to_owned()),
                ..Record::default()
            })
        };
        let (a, b) = (draws(r#"{"app":"a"}"#), draws(r#"{"app":"b"}"#));
        assert_eq!((a[0], a[1].budget), (b[0], b[1].budget));
        assert_ne!(a[1].by, b[1].by);
        assert_eq!(draws("no json"), draws("{}"));
    }

    /// Which of two fields counts, the partner might see otherwise: the record is a dead letter that says why.
    #[test]
    fn a_field_that_is_there_twice_makes_the_record_invalid() {
        let when = |text: &str| Rules {
            when: Some(text.into()),
            ..rules()
        };
        let named = Rules {
            share: Share::Named {
                pointer: "/to".into(),
                partner: "a".into(),
                unknown: Some(vec!["a".into()]),
            },
            ..rules()
        };
        let split = Rules {
            budgets: vec![BudgetRule {
                budget: 2,
                by: Some("/app".into()),
            }],
            ..rules()
        };
        for (rules, value, field) in [
            (rules(), r#"{"id":"A","id":"B","v":1}"#, "/id"),
            (rules(), r#"{"id":"A","user":"u","user":"v"}"#, "/user"),
            (rules(), r#"{"id":"A","user":"u","\u0069d":"B"}"#, "/id"),
            (named, r#"{"id":"1","to":"a","to":"b"}"#, "/to"),
            (
                when("value.kind == 'a'"),
                r#"{"id":"1","kind":"a","kind":"b"}"#,
                "/kind",
            ),
            (
                when("value.kind == 'b'"),
                r#"{"id":"1","kind":"a","kind":"b"}"#,
                "/kind",
            ),
            (split, r#"{"id":"1","app":"a","app":"b"}"#, "/app"),
        ] {
            match resolve(rules, value) {
                Resolved::Invalid(known, why) => {
                    assert!(
                        why.starts_with("invalid: ") && why.contains(&format!("`{field}` is there twice")),
                        "{why}"
                    );
                    assert_eq!(known.id, scope().position(5));
                }
                other => panic!("{value}: {other:?}"),
            }
        }
        assert!(matches!(
            resolve(rules(), r#"{"id":"A","v":1,"v":2}"#),
            Resolved::Message(_)
        ));
    }

    /// An empty ID, also in a part, is a missing one; an empty key orders nothing.
    #[test]
    fn empty_is_missing() {
        let joined = Rules {
            id: vec![IdSource::Json("/a".into()), IdSource::Json("/b".into())],
            ..rules()
        };
        for value in [r#"{"a":"x","b":""}"#, r#"{"a":"x","b":null}"#, r#"{"a":"x"}"#] {
            assert!(
                matches!(resolve(joined.clone(), value), Resolved::Invalid(_, why) if why.starts_with("no_id")),
                "{value}"
            );
        }
        for user in [r#""""#, "null", r#"" ""#] {
            let Resolved::Message(known) = resolve(rules(), &format!(r#"{{"id":1,"user":{user}}}"#)) else {
                panic!()
            };
            assert_eq!(known.key, None, "{user}");
        }
        let dead = Rules {
            key_missing: KeyMissing::Dead,
            ..rules()
        };
        assert!(
            matches!(resolve(dead, r#"{"id":1,"user":""}"#), Resolved::Invalid(_, why) if why == "no_key: the record has no key")
        );
    }

    #[test]
    fn the_reason_names_the_true_cause() {
        let cut = r#"{"id":1,"user":"#;
        assert!(
            matches!(resolve(rules(), cut), Resolved::Invalid(_, why) if why.contains("no_id") && why.contains("not JSON at line 1"))
        );
        let filtered = Rules {
            when: Some("value.kind == 'x'".into()),
            ..rules()
        };
        assert!(
            matches!(resolve(filtered.clone(), cut), Resolved::Invalid(_, why) if why.contains("not JSON at line 1")),
            "half an object is not for nobody"
        );
        assert_eq!(resolve(filtered, "plain text"), Resolved::Filtered);
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
