//! From text to a condition: recursive descent, depth and length bounded.

use super::eval::{Node, Op, Root, Val};
use super::{ExprError, Vocabulary};
use regex::RegexBuilder;
use std::borrow::Cow;

/// Longest expression, bytes.
const MAX_TEXT: usize = 4096;
/// Deepest nesting of parentheses and `not`.
const MAX_DEPTH: usize = 64;
/// Bytes that a compiled regular expression may take.
const MAX_REGEX: usize = 1 << 20;

pub(super) struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    vocabulary: Vocabulary,
    uses_document: bool,
    /// Paths of the document's fields, in the order of their numbers.
    paths: Vec<Vec<String>>,
}

type Parsed<T> = Result<T, ExprError>;

impl<'t> Parser<'t> {
    pub(super) fn try_new(text: &'t str, vocabulary: Vocabulary) -> Parsed<Self> {
        let parser = Self {
            text,
            at: 0,
            depth: 0,
            vocabulary,
            uses_document: false,
            paths: Vec::new(),
        };
        if text.len() > MAX_TEXT {
            return Err(parser.error(0, format!("an expression has at most {MAX_TEXT} bytes"), None));
        }
        Ok(parser)
    }

    pub(super) fn uses_document(&self) -> bool {
        self.uses_document
    }

    pub(super) fn into_paths(self) -> Vec<Vec<String>> {
        self.paths
    }

    pub(super) fn condition(&mut self) -> Parsed<Node> {
        let node = self.or()?;
        self.end()?;
        Ok(node)
    }

    pub(super) fn path_alone(&mut self) -> Parsed<Node> {
        let node = self.operand()?;
        self.end()?;
        Ok(node)
    }

    fn end(&mut self) -> Parsed<()> {
        self.space();
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(());
        }
        let hint = if rest.starts_with("&&") {
            Some("`&&` is written `and`")
        } else if rest.starts_with("||") {
            Some("`||` is written `or`")
        } else if rest.starts_with('=') {
            Some("equality is written `==`")
        } else if rest.starts_with('~') {
            Some("a regular expression is written `matches \"…\"`")
        } else if rest.starts_with("is ") {
            Some("`is defined` is written `exists`")
        } else {
            None
        };
        Err(self.error(
            self.at,
            format!("expected `and`, `or` or the end, found `{}`", self.shown()),
            hint.map(str::to_owned),
        ))
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// The next word or sign, for errors.
    fn shown(&self) -> &'t str {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return "the end";
        };
        let end = if is_name(first) {
            rest.find(|c| !is_name(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        &rest[..end]
    }

    fn error(&self, at: usize, message: String, hint: Option<String>) -> ExprError {
        ExprError {
            column: self.text[..at].chars().count() + 1,
            message,
            hint,
        }
    }

    fn fail<T>(&self, at: usize, message: impl Into<String>, hint: Option<String>) -> Parsed<T> {
        Err(self.error(at, message.into(), hint))
    }

    /// Takes a whole word.
    fn word(&mut self, word: &str) -> bool {
        self.space();
        let rest = self.rest();
        let taken = rest
            .strip_prefix(word)
            .is_some_and(|r| !r.chars().next().is_some_and(is_name));
        if taken {
            self.at += word.len();
        }
        taken
    }

    /// Takes a sign.
    fn sign(&mut self, sign: &str) -> bool {
        self.space();
        let taken = self.rest().starts_with(sign);
        if taken {
            self.at += sign.len();
        }
        taken
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail(self.at, format!("nested more than {MAX_DEPTH} deep"), None);
        }
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn or(&mut self) -> Parsed<Node> {
        let mut any = vec![self.and()?];
        while self.word("or") {
            any.push(self.and()?);
        }
        Ok(one_or(any, Node::Or))
    }

    fn and(&mut self) -> Parsed<Node> {
        let mut all = vec![self.not()?];
        while self.word("and") {
            all.push(self.not()?);
        }
        Ok(one_or(all, Node::And))
    }

    fn not(&mut self) -> Parsed<Node> {
        if self.word("not") {
            return self.deeper(|p| Ok(Node::Not(Box::new(p.not()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Parsed<Node> {
        let left = if self.sign("(") {
            let inner = self.deeper(Self::or)?;
            if !self.sign(")") {
                return self.fail(self.at, format!("expected `)`, found `{}`", self.shown()), None);
            }
            inner
        } else {
            self.operand()?
        };
        const SIGNS: [(&str, Op); 6] = [
            ("==", Op::Eq),
            ("!=", Op::Ne),
            ("<=", Op::Le),
            (">=", Op::Ge),
            ("<", Op::Lt),
            (">", Op::Gt),
        ];
        const WORDS: [(&str, Op); 3] = [
            ("contains", Op::Contains),
            ("starts_with", Op::StartsWith),
            ("ends_with", Op::EndsWith),
        ];
        for (sign, op) in SIGNS {
            if self.sign(sign) {
                return Ok(Node::Compare(Box::new(left), op, Box::new(self.operand()?)));
            }
        }
        for (word, op) in WORDS {
            if self.word(word) {
                return Ok(Node::Compare(Box::new(left), op, Box::new(self.operand()?)));
            }
        }
        if self.word("exists") {
            return Ok(Node::Exists(Box::new(left)));
        }
        if self.word("matches") {
            return Ok(Node::Matches(Box::new(left), self.regex()?));
        }
        if self.word("in") {
            return Ok(Node::In(Box::new(left), self.list()?));
        }
        let before = self.at;
        if self.word("not") && self.word("in") {
            return Ok(Node::Not(Box::new(Node::In(Box::new(left), self.list()?))));
        }
        self.at = before;
        Ok(left)
    }

    fn list(&mut self) -> Parsed<Vec<Node>> {
        if !self.sign("[") {
            let hint = Some("a list is written `[1, 2]`".to_owned());
            return self.fail(self.at, format!("expected `[`, found `{}`", self.shown()), hint);
        }
        let mut list = Vec::new();
        while !self.sign("]") {
            list.push(self.operand()?);
            if !self.sign(",") && !self.rest().starts_with(']') {
                return self.fail(
                    self.at,
                    format!("expected `,` or `]`, found `{}`", self.shown()),
                    None,
                );
            }
        }
        Ok(list)
    }

    fn regex(&mut self) -> Parsed<regex::Regex> {
        self.space();
        let at = self.at;
        let Some(pattern) = self.quoted()? else {
            let hint = Some("write `matches \"^a.*b$\"`".to_owned());
            return self.fail(
                at,
                format!("expected a pattern in quotes, found `{}`", self.shown()),
                hint,
            );
        };
        RegexBuilder::new(&pattern)
            .size_limit(MAX_REGEX)
            .build()
            .map_err(|e| {
                let why = match e {
                    regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
                    // The last line says what; the lines before draw where.
                    e => e
                        .to_string()
                        .lines()
                        .last()
                        .unwrap_or_default()
                        .trim_start_matches("error: ")
                        .to_owned(),
                };
                self.error(at, format!("the pattern cannot be used: {why}"), None)
            })
    }

    fn operand(&mut self) -> Parsed<Node> {
        self.space();
        let at = self.at;
        if let Some(text) = self.quoted()? {
            return Ok(Node::Literal(Val::Text(Cow::Owned(text))));
        }
        for (word, value) in [
            ("true", Val::Bool(true)),
            ("false", Val::Bool(false)),
            ("null", Val::Null),
        ] {
            if self.word(word) {
                return Ok(Node::Literal(value));
            }
        }
        if self.rest().starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            return self.number();
        }
        let name = self.shown();
        if self.rest().is_empty() || !name.starts_with(is_name) {
            let hint = match name {
                "!" => Some("`!` is written `not`"),
                _ => None,
            };
            let found = if self.rest().is_empty() {
                "the end".to_owned()
            } else {
                format!("`{name}`")
            };
            return self.fail(
                at,
                format!("expected a value, found {found}"),
                hint.map(str::to_owned),
            );
        }
        self.at += name.len();
        let answer = self.vocabulary == Vocabulary::Answer;
        let root = match name {
            "status" if answer => Root::Status,
            "body" if answer => return self.document(),
            "value" if !answer => return self.document(),
            "key" if !answer => Root::Key,
            "topic" if !answer => Root::Topic,
            "partition" if !answer => Root::Partition,
            "offset" if !answer => Root::Offset,
            "header" | "headers" => return self.header(),
            _ => return Err(self.unknown(at, name)),
        };
        if self.rest().starts_with(['.', '[']) {
            return self.fail(self.at, format!("`{name}` has nothing below it"), None);
        }
        Ok(Node::Root(root))
    }

    fn unknown(&self, at: usize, name: &str) -> ExprError {
        let known: &[&str] = match self.vocabulary {
            Vocabulary::Answer => &["status", "header", "body"],
            Vocabulary::Record => &["value", "key", "headers", "topic", "partition", "offset"],
        };
        let near = known.iter().find(|k| strsim::damerau_levenshtein(k, name) <= 2);
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known are {}; a text needs quotes", known.join(", ")),
        };
        self.error(at, format!("unknown name `{name}`"), Some(hint))
    }

    fn number(&mut self) -> Parsed<Node> {
        let at = self.at;
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+')))
            .unwrap_or(rest.len());
        let text = &rest[..end];
        self.at += end;
        // JSON's own numbers: no `inf`, no hexadecimal, no `1_000`.
        let number = serde_json::from_str::<serde_json::Number>(text)
            .ok()
            .and_then(|_| Val::number(Cow::Owned(text.to_owned())));
        match number {
            Some(number) => Ok(Node::Literal(number)),
            None => {
                let hint = Some("a text needs quotes".to_owned());
                self.fail(at, format!("`{text}` is not a number"), hint)
            }
        }
    }

    /// A text in single or double quotes, with the escapes `\\ \" \' \n \r \t`; any other backslash stays, so that
    /// patterns need none doubled.
    fn quoted(&mut self) -> Parsed<Option<String>> {
        self.space();
        let at = self.at;
        let Some(quote) = self.rest().chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            return Ok(None);
        };
        let mut out = String::new();
        let mut chars = self.rest()[1..].char_indices();
        while let Some((i, c)) = chars.next() {
            if c == quote {
                self.at += 1 + i + 1;
                return Ok(Some(out));
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, 'r')) => out.push('\r'),
                Some((_, 't')) => out.push('\t'),
                Some((_, c @ ('\\' | '"' | '\''))) => out.push(c),
                Some((_, other)) => out.extend(['\\', other]),
                None => break,
            }
        }
        self.fail(at, format!("no closing {quote}"), None)
    }

    fn header(&mut self) -> Parsed<Node> {
        let at = self.at;
        let hint = || Some("write `header[\"x-name\"]`".to_owned());
        let name = if self.rest().starts_with('.') {
            self.at += 1;
            let rest = self.rest();
            let end = rest.find(|c| !is_name(c) && c != '-').unwrap_or(rest.len());
            self.at += end;
            rest[..end].to_owned()
        } else if self.sign("[") {
            let Some(name) = self.quoted()? else {
                return self.fail(self.at, "expected a header's name in quotes", hint());
            };
            if !self.sign("]") {
                return self.fail(self.at, format!("expected `]`, found `{}`", self.shown()), hint());
            }
            name
        } else {
            return self.fail(at, "expected a header's name in brackets", hint());
        };
        if name.is_empty() {
            return self.fail(at, "a header's name is empty", hint());
        }
        Ok(Node::Header(name))
    }

    /// What stands behind `body` or `value`.
    fn document(&mut self) -> Parsed<Node> {
        self.uses_document = true;
        let mut path = Vec::new();
        loop {
            let rest = self.rest();
            if let Some(rest) = rest.strip_prefix('.') {
                let end = rest.find(|c| !is_name(c) && c != '-').unwrap_or(rest.len());
                if end == 0 {
                    return self.fail(self.at + 1, "expected a name after `.`", None);
                }
                path.push(rest[..end].to_owned());
                self.at += 1 + end;
            } else if rest.starts_with('[') {
                self.at += 1;
                path.push(self.index()?);
            } else {
                break;
            }
        }
        if path.is_empty() && self.rest().trim_start().starts_with('/') {
            self.space();
            path = self.pointer()?;
        }
        if path.is_empty() {
            return Ok(Node::Document);
        }
        self.paths.push(path);
        Ok(Node::Field(self.paths.len() - 1))
    }

    fn index(&mut self) -> Parsed<String> {
        self.space();
        let at = self.at;
        let name = match self.quoted()? {
            Some(name) => name,
            None => {
                let rest = self.rest();
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                self.at += end;
                rest[..end].to_owned()
            }
        };
        if name.is_empty() && self.at == at {
            let hint = Some("write `[0]` or `[\"name\"]`".to_owned());
            return self.fail(
                at,
                format!("expected an index or a name in quotes, found `{}`", self.shown()),
                hint,
            );
        }
        if !self.sign("]") {
            return self.fail(self.at, format!("expected `]`, found `{}`", self.shown()), None);
        }
        Ok(name)
    }

    /// A JSON pointer (RFC 6901), up to a space or a closing sign.
    fn pointer(&mut self) -> Parsed<Vec<String>> {
        let rest = self.rest();
        let end = rest
            .find(|c: char| c.is_whitespace() || matches!(c, ')' | ']' | ','))
            .unwrap_or(rest.len());
        let mut steps = Vec::new();
        for part in rest[1..end].split('/') {
            let bad = part
                .match_indices('~')
                .any(|(i, _)| !matches!(part.as_bytes().get(i + 1), Some(b'0' | b'1')));
            if bad {
                let hint = Some("`~` is written `~0`, `/` is written `~1`".to_owned());
                return self.fail(self.at, "not a JSON pointer", hint);
            }
            steps.push(part.replace("~1", "/").replace("~0", "~"));
        }
        self.at += end;
        Ok(steps)
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn one_or(mut nodes: Vec<Node>, many: fn(Vec<Node>) -> Node) -> Node {
    if nodes.len() == 1 {
        nodes.remove(0)
    } else {
        many(nodes)
    }
}
