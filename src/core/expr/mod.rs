//! The small language of conditions: verdict rules over answers, filters over records.
//!
//! ```text
//! status == 200 and body.code != 0            value.kind in ["click", "view"] and not headers["x-test"] exists
//! header["x-error"] exists                    body.errors[0].type == "rate"
//! body /error/code >= 500                     body matches "(?i)upstream"
//! ```
//!
//! Roots are `status`, `header["…"]` and `body` over answers; `value`, `key`, `headers["…"]`, `topic`, `partition`
//! and `offset` over records. `body` and `value` alone are the text; with `.name`, `[0]`, `["name"]` or a JSON
//! pointer behind them, what stands there in the JSON. Operators: `== != < <= > >=`, `in [..]`, `matches "regex"`,
//! `contains`, `starts_with`, `ends_with`, `exists`; `and`, `or`, `not`, parentheses.
//!
//! Rules that surprise least: **what is missing makes every comparison false**, `!=` too (`not … exists` asks for
//! it); headers, the key and whole texts count as numbers where they are compared with one, JSON strings do not;
//! a path alone is true if it is `true`. Numbers keep their digits.
//!
//! Documents are read by [`crate::core::pointer`], like everything else: one pass for all paths of a condition, made
//! when the first of them is needed. [`Expr::try_test`] fails where a path is needed of a document that is not JSON,
//! or that holds one of its fields twice. [`Expr::test`] takes those fields for missing; of a document that was cut
//! it still sees what was complete before the cut.
//!
//! Own language, not the template engine's expressions: those have no `exists`, regular expressions or pointers,
//! need the whole document as values of theirs, and raise errors where a field is missing.

mod eval;
mod legible;
mod parse;
#[cfg(test)]
mod tests;

pub use eval::{RecordScope, Root, Scope, Val};
pub use legible::Legible;

use crate::core::pointer::{Pointers, Unreadable};
use eval::{Node, Reading};
use parse::Parser;
use std::fmt;

/// What an expression is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// A partner's answer.
    Answer,
    /// A record.
    Record,
}

/// A condition, compiled once.
#[derive(Clone, Debug)]
pub struct Expr {
    node: Node,
    fields: Fields,
    uses_document: bool,
}

/// A path alone, as the `reason` of a verdict rule: `body.message`.
#[derive(Clone, Debug)]
pub struct PathExpr {
    node: Node,
    fields: Fields,
    uses_document: bool,
}

/// The fields of the document that an expression looks at.
#[derive(Clone, Debug)]
struct Fields {
    pointers: Pointers,
    paths: Vec<Vec<String>>,
}

impl Fields {
    fn new(paths: Vec<Vec<String>>) -> Self {
        Self {
            pointers: Pointers::of_paths(&paths),
            paths,
        }
    }
}

/// An expression that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExprError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
    /// What to write instead, where that is known.
    pub hint: Option<String>,
}

impl fmt::Display for ExprError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ExprError {}

impl Expr {
    /// Compiles a condition.
    ///
    /// # Errors
    /// With column and hint.
    pub fn compile(text: &str, vocabulary: Vocabulary) -> Result<Self, ExprError> {
        let mut parser = Parser::try_new(text, vocabulary)?;
        let node = parser.condition()?;
        Ok(Self {
            node,
            uses_document: parser.uses_document(),
            fields: Fields::new(parser.into_paths()),
        })
    }

    /// Whether the condition holds; fields that cannot be read are taken for missing.
    pub fn test(&self, scope: &impl Scope) -> bool {
        self.node.test(&Reading::of(scope, &self.fields.pointers))
    }

    /// Whether the condition holds.
    ///
    /// # Errors
    /// If a field is needed of a document that is not JSON or holds the field twice.
    pub fn try_test(&self, scope: &impl Scope) -> Result<bool, Unreadable> {
        let reading = Reading::of(scope, &self.fields.pointers);
        let holds = self.node.test(&reading);
        match reading.into_fault() {
            None => Ok(holds),
            Some(fault) => Err(fault),
        }
    }

    /// JSON pointers of the fields of the document that it looks at.
    pub fn pointers(&self) -> impl Iterator<Item = String> {
        self.fields.paths.iter().map(|path| {
            let escaped = path.iter().map(|s| s.replace('~', "~0").replace('/', "~1"));
            escaped.fold(String::new(), |all, step| all + "/" + &step)
        })
    }

    /// Whether it looks at the body (or the value).
    pub fn uses_document(&self) -> bool {
        self.uses_document
    }
}

impl PathExpr {
    /// Compiles a path or a text in quotes.
    ///
    /// # Errors
    /// With column and hint.
    pub fn compile(text: &str, vocabulary: Vocabulary) -> Result<Self, ExprError> {
        let mut parser = Parser::try_new(text, vocabulary)?;
        let node = parser.path_alone()?;
        Ok(Self {
            node,
            uses_document: parser.uses_document(),
            fields: Fields::new(parser.into_paths()),
        })
    }

    /// The value there, as text; none where it is missing.
    pub fn text(&self, scope: &impl Scope) -> Option<String> {
        self.node.text(&Reading::of(scope, &self.fields.pointers))
    }

    /// Whether it looks at the body (or the value).
    pub fn uses_document(&self) -> bool {
        self.uses_document
    }
}
