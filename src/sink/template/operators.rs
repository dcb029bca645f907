//! Makes the engine's operators see what they expect.
//!
//! Values of a record keep their own spelling (`19.90`, `true`): as the engine's own numbers and words they would come
//! out as `19.9` and `True`. Operators, though, know only the engine's own. So each operand of one is passed through a
//! filter when the template is compiled: `a * b` becomes `(a|__num) * (b|__num)`, `a ~ b` becomes
//! `(a|__text) ~ (b|__text)`. Nothing else of the text changes, no line either. Names of variables and errors are
//! those of the original.

use std::borrow::Cow;

/// Filter that gives arithmetic and comparisons the engine's own numbers.
pub(super) const NUMBER: &str = "__num";
/// Filter that gives `~` the text that would be printed.
pub(super) const TEXT: &str = "__text";

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Number,
    Text,
    Open,
    Close,
    /// Arithmetic, a comparison.
    Operator,
    Tilde,
    /// Anything else: `.`, `|`, `,`, `:`, `=`.
    Other,
}

/// A token of a block, and where it stands in the template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Words that are no operand.
const WORDS: [&str; 14] = [
    "and",
    "or",
    "not",
    "in",
    "is",
    "if",
    "else",
    "elif",
    "for",
    "set",
    "with",
    "do",
    "recursive",
    "as",
];

/// Tests that ask for a number.
const NUMBER_TESTS: [&str; 18] = [
    "number",
    "integer",
    "int",
    "float",
    "odd",
    "even",
    "divisibleby",
    "eq",
    "equalto",
    "ne",
    "lt",
    "lessthan",
    "le",
    "gt",
    "greaterthan",
    "ge",
    "in",
    "sameas",
];

/// The template with its operands filtered.
pub(super) fn rewrite(source: &str) -> Cow<'_, str> {
    let mut inserts: Vec<(usize, &'static str)> = Vec::new();
    for_each_block(source, |tokens| operands(source, tokens, &mut inserts));
    if inserts.is_empty() {
        return Cow::Borrowed(source);
    }
    // Of those at one place, the closing ones first, as they were found: closings of inner operands come earlier.
    inserts.sort_by_key(|(at, text)| (*at, *text == "("));
    let mut out = String::with_capacity(source.len() + inserts.len() * 8);
    let mut done = 0;
    for (at, text) in inserts {
        out.push_str(&source[done..at]);
        out.push_str(text);
        done = at;
    }
    out.push_str(&source[done..]);
    Cow::Owned(out)
}

/// Hands over the tokens of each block that holds expressions: comments and raw blocks are passed over.
pub(super) fn for_each_block(source: &str, mut take: impl FnMut(&[Token])) {
    let mut at = 0;
    while let Some(open) = next_block(source, at) {
        let kind = source.as_bytes()[open + 1];
        if kind == b'#' {
            let Some(end) = source[open..].find("#}") else {
                break;
            };
            at = open + end + 2;
            continue;
        }
        let (tokens, end) = tokens(source, open + 2, kind);
        at = end;
        if kind == b'%' && tokens.first().is_some_and(|t| &source[t.start..t.end] == "raw") {
            at = end_of_raw(source, at);
            continue;
        }
        take(&tokens);
    }
}

fn next_block(source: &str, from: usize) -> Option<usize> {
    let bytes = source.as_bytes();
    let mut at = from;
    loop {
        at += memchr::memchr(b'{', bytes.get(at..)?)?;
        match bytes.get(at + 1) {
            Some(b'{' | b'%' | b'#') => return Some(at),
            _ => at += 1,
        }
    }
}

/// Where the text goes on after a raw block.
fn end_of_raw(source: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(open) = source[at..].find("{%").map(|n| at + n) {
        let inside = source[open + 2..].trim_start_matches(['-', '+', ' ', '\t', '\n', '\r']);
        at = open + 2;
        if inside.starts_with("endraw") {
            return source[at..].find("%}").map_or(source.len(), |n| at + n + 2);
        }
    }
    source.len()
}

/// The tokens of a block, and where it ends.
fn tokens(source: &str, from: usize, kind: u8) -> (Vec<Token>, usize) {
    let close: &[u8] = if kind == b'{' { b"}}" } else { b"%}" };
    let bytes = source.as_bytes();
    let mut out = Vec::new();
    let mut at = from;
    if matches!(bytes.get(at), Some(b'-' | b'+')) {
        at += 1;
    }
    let mut depth = 0usize;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if depth == 0 {
            let marked = usize::from(matches!(rest[0], b'-' | b'+'));
            if rest[marked..].starts_with(close) {
                return (out, at + marked + 2);
            }
        }
        let (kind, len) = match rest[0] {
            b if b.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            quote @ (b'"' | b'\'') => {
                let mut end = 1;
                while end < rest.len() && rest[end] != quote {
                    end += if rest[end] == b'\\' { 2 } else { 1 };
                }
                (Kind::Text, (end + 1).min(rest.len()))
            }
            b if b.is_ascii_digit() => {
                let mut end = 1;
                while end < rest.len() {
                    let fits = rest[end].is_ascii_alphanumeric()
                        || rest[end] == b'_'
                        || (rest[end] == b'.' && rest.get(end + 1).is_some_and(u8::is_ascii_digit))
                        || (matches!(rest[end], b'+' | b'-') && matches!(rest[end - 1], b'e' | b'E'));
                    if !fits {
                        break;
                    }
                    end += 1;
                }
                (Kind::Number, end)
            }
            b if b.is_ascii_alphabetic() || b == b'_' || b >= 0x80 => {
                let name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
                (Kind::Name, rest.iter().take_while(|b| name(b)).count())
            }
            b'(' | b'[' | b'{' => {
                depth += 1;
                (Kind::Open, 1)
            }
            b')' | b']' | b'}' => {
                depth = depth.saturating_sub(1);
                (Kind::Close, 1)
            }
            b'~' => (Kind::Tilde, 1),
            _ if [&b"=="[..], b"!=", b"<=", b">=", b"**", b"//"]
                .iter()
                .any(|op| rest.starts_with(op)) =>
            {
                (Kind::Operator, 2)
            }
            b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' => (Kind::Operator, 1),
            _ => (Kind::Other, 1),
        };
        out.push(Token {
            kind,
            start: at,
            end: at + len,
        });
        at += len;
    }
    (out, source.len())
}

/// Notes what is to be inserted around the operands of one block.
fn operands(source: &str, tokens: &[Token], inserts: &mut Vec<(usize, &'static str)>) {
    let text = |i: usize| tokens.get(i).map_or("", |t| &source[t.start..t.end]);
    let kind = |i: usize| tokens.get(i).map_or(Kind::Other, |t| t.kind);
    // The `in` of a `for` separates names from what they run over.
    let loop_in = match text(0) {
        "for" => tokens.iter().position(|t| &source[t.start..t.end] == "in"),
        _ => None,
    };
    let is_word = |i: usize| kind(i) == Kind::Name && WORDS.contains(&text(i));
    let closing = |open: usize| {
        let mut depth = 0usize;
        for i in open..tokens.len() {
            match kind(i) {
                Kind::Open => depth += 1,
                Kind::Close => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return i;
            }
        }
        tokens.len() - 1
    };
    let mut starts_operand = true;
    for i in 0..tokens.len() {
        let previous_allows = starts_operand;
        starts_operand = match kind(i) {
            Kind::Name => is_word(i),
            Kind::Number | Kind::Text | Kind::Close => false,
            Kind::Open | Kind::Operator | Kind::Tilde => true,
            Kind::Other => !matches!(text(i), "." | "|"),
        };
        let is_primary = match kind(i) {
            Kind::Name => !is_word(i) && previous_allows,
            Kind::Number | Kind::Text | Kind::Open => previous_allows,
            _ => false,
        };
        if !is_primary
            || (i > 0 && (text(i - 1) == "is" || (text(i - 1) == "not" && i > 1 && text(i - 2) == "is")))
        {
            continue;
        }
        let mut end = if kind(i) == Kind::Open {
            closing(i) + 1
        } else {
            i + 1
        };
        loop {
            match (text(end), kind(end)) {
                (".", _) => end += 2,
                ("(" | "[", Kind::Open) => end = closing(end) + 1,
                _ => break,
            }
        }
        let postfix_end = end;
        while text(end) == "|" {
            end += 2;
            while text(end) == "." {
                end += 2;
            }
            if text(end) == "(" {
                end = closing(end) + 1;
            }
        }
        let (end, postfix_end) = (end.min(tokens.len()), postfix_end.min(tokens.len()));
        let operator_before =
            i > 0 && (kind(i - 1) == Kind::Operator || (text(i - 1) == "in" && loop_in != Some(i - 1)));
        let negated = operator_before
            && matches!(text(i - 1), "-" | "+")
            && (i == 1
                || is_word(i - 2)
                || matches!(kind(i - 2), Kind::Open | Kind::Operator | Kind::Tilde)
                || (kind(i - 2) == Kind::Other && text(i - 2) != "."));
        let test = match (text(end), text(end + 1)) {
            ("is", "not") => text(end + 2),
            ("is", test) => test,
            _ => "",
        };
        let operator_after = kind(end) == Kind::Operator && end < tokens.len()
            || (text(end) == "in" && loop_in != Some(end))
            || (text(end) == "not" && text(end + 1) == "in")
            || NUMBER_TESTS.contains(&test);
        let tilde = (i > 0 && kind(i - 1) == Kind::Tilde) || (kind(end) == Kind::Tilde && end < tokens.len());
        let literal = end == i + 1 && matches!(kind(i), Kind::Number | Kind::Text);
        let (filter, end) = match (operator_before || operator_after, tilde) {
            _ if literal => continue,
            (true, _) if negated => ("|__num)", postfix_end),
            (true, _) => ("|__num)", end),
            (false, true) => ("|__text)", end),
            (false, false) => continue,
        };
        inserts.push((tokens[i].start, "("));
        inserts.push((tokens[end - 1].end, filter));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_filtered_and_nothing_else() {
        assert_eq!((NUMBER, TEXT), ("__num", "__text"));
        for (source, want) in [
            ("{{ value.a * 100 }}", "{{ (value.a|__num) * 100 }}"),
            (
                "{{ value.a[0].b | round(2) + x }}",
                "{{ (value.a[0].b | round(2)|__num) + (x|__num) }}",
            ),
            ("{{ a ~ '-' ~ b }}", "{{ (a|__text) ~ '-' ~ (b|__text) }}"),
            ("{{ (a > 1) ~ 'x' }}", "{{ (((a|__num) > 1)|__text) ~ 'x' }}"),
            ("{{- -a.b|abs -}}", "{{- -(a.b|__num)|abs -}}"),
            ("{{ f(a - b, c=d) }}", "{{ f((a|__num) - (b|__num), c=d) }}"),
            ("{{ a if b < 3 else c }}", "{{ a if (b|__num) < 3 else c }}"),
            (
                "{% for x in value.l if x.n >= y %}{{ x }}{% endfor %}",
                "{% for x in value.l if (x.n|__num) >= (y|__num) %}{{ x }}{% endfor %}",
            ),
            ("{% if a not in b %}", "{% if (a|__num) not in (b|__num) %}"),
            (
                "{% if a is divisibleby 3 %}",
                "{% if (a|__num) is divisibleby 3 %}",
            ),
            (
                "{% if a is not odd and b %}",
                "{% if (a|__num) is not odd and b %}",
            ),
            ("{% set n = a.b % 7 %}", "{% set n = (a.b|__num) % 7 %}"),
            ("{{ [a, {'k': b * 2}] }}", "{{ [a, {'k': (b|__num) * 2}] }}"),
            ("{{ a[i + 1] }}", "{{ a[(i|__num) + 1] }}"),
        ] {
            assert_eq!(rewrite(source), want);
        }
        for same in [
            "plain * text - {x}",
            "{{ value.a }} - {{ value.b }}",
            "{{ value.a | default('a - b') | tojson }}",
            "{# a * b #}{% raw %}{{ a * b }}{% endraw %}{{ a }}",
            "{% for k, v in value.m | items %}{{ k }}={{ v }}{% endfor %}",
            "{% if value.a is defined and not value.b %}{% endif %}",
            "{%- if a -%}{{- a -}}{%- endif -%}",
            "{{ unclosed",
            "{{ f(x='-', y=\"a~b\") }}",
        ] {
            assert_eq!(rewrite(same), same);
        }
    }

    #[test]
    fn no_text_panics() {
        let pieces = [
            "{{", "}}", "{%", "%}", "(", ")", "[", "|", ".", "a", "-", "~", "in", "for", "is", "not", "'",
            "1", "raw", "é",
        ];
        fastrand::seed(7);
        for _ in 0..20_000 {
            let text: String = (0..fastrand::usize(0..14))
                .map(|_| pieces[fastrand::usize(..pieces.len())])
                .collect::<Vec<_>>()
                .join(if fastrand::bool() { " " } else { "" });
            rewrite(&text);
        }
    }
}
