//! Conditions over a document that cannot be read, or not to its end: what is certain all the same.
//!
//! A part of a condition that needs the document is then neither true nor false; `and`, `or` and `not` say what of
//! the whole is certain (Kleene). `status == 200 and body.code != 0` is false for a 404 whatever its body says.

use super::Expr;
use super::eval::{Node, Op, Reading, Scope};
use crate::core::pointer::Unreadable;

/// How much of a document can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Legible {
    /// Text, and JSON from beginning to end.
    Json,
    /// Text, but no JSON.
    Text,
    /// The beginning of a longer text.
    Begun,
    /// Nothing.
    Not,
}

impl Expr {
    /// Whether the condition holds; none where that depends on what cannot be read, or on a name that stands in an
    /// object twice.
    pub fn decide(&self, scope: &impl Scope, legible: Legible) -> Option<bool> {
        let reading = Reading::of(scope, &self.fields.pointers);
        if !self.uses_document {
            return Some(self.node.test(&reading));
        }
        let document = Document {
            legible,
            paths: &self.fields.paths,
            is_object: scope.document().trim_ascii_start().first() == Some(&b'{'),
        };
        self.node.decide(&reading, &document)
    }
}

/// What is known of the document before a field is looked for.
struct Document<'a> {
    legible: Legible,
    /// The ways to the fields that the condition looks at.
    paths: &'a [Vec<String>],
    is_object: bool,
}

impl Node {
    fn decide<S: Scope>(&self, reading: &Reading<'_, S>, document: &Document<'_>) -> Option<bool> {
        match self {
            Node::And(all) => certain(all.iter().map(|n| n.decide(reading, document)), false),
            Node::Or(any) => certain(any.iter().map(|n| n.decide(reading, document)), true),
            Node::Not(inner) => inner.decide(reading, document).map(|holds| !holds),
            // What stands at the beginning of a text stands in the text.
            Node::Compare(a, Op::Contains | Op::StartsWith, _)
                if document.legible == Legible::Begun
                    && matches!(**a, Node::Document)
                    && self.test(reading) =>
            {
                Some(true)
            }
            leaf => leaf.is_clear(reading, document).then(|| leaf.test(reading)),
        }
    }

    /// Whether everything in it can be read.
    fn is_clear<S: Scope>(&self, reading: &Reading<'_, S>, document: &Document<'_>) -> bool {
        let clear = |node: &Node| node.is_clear(reading, document);
        match self {
            Node::And(all) | Node::Or(all) => all.iter().all(clear),
            Node::Not(a) | Node::Matches(a, _) | Node::Exists(a) => clear(a),
            Node::Compare(a, _, b) => clear(a) && clear(b),
            Node::In(a, list) => clear(a) && list.iter().all(clear),
            Node::Document => matches!(document.legible, Legible::Json | Legible::Text),
            Node::Field(at) => document.shows(*at, reading),
            Node::Literal(_) | Node::Root(_) | Node::Header(_) => true,
        }
    }
}

impl Document<'_> {
    /// Whether it is certain what stands at a path, or that nothing does.
    fn shows<S: Scope>(&self, at: usize, reading: &Reading<'_, S>) -> bool {
        // A name is asked of an object, an index of an array too: of another shape nothing was meant to be said.
        let first = self.paths.get(at).and_then(|path| path.first());
        let is_index = |name: &String| name.bytes().all(|b| b.is_ascii_digit());
        let of_its_shape = || self.is_object || first.is_none_or(is_index);
        let fields = || reading.fields();
        match self.legible {
            Legible::Json => of_its_shape() && fields().fault.is_none(),
            Legible::Begun => {
                !matches!(fields().fault, Some(Unreadable::Twice(_)))
                    && fields().found.get(at).is_some_and(Option::is_some)
            }
            Legible::Text | Legible::Not => false,
        }
    }
}

/// `decides`: the value that decides the whole by itself, true for `or`, false for `and`.
fn certain(parts: impl Iterator<Item = Option<bool>>, decides: bool) -> Option<bool> {
    let mut whole = Some(!decides);
    for part in parts {
        match part {
            Some(value) if value == decides => return Some(decides),
            Some(_) => {}
            None => whole = None,
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::super::{Root, Val, Vocabulary};
    use super::*;

    struct Answer(u16, &'static str);

    impl Scope for Answer {
        fn root(&self, root: Root) -> Val<'_> {
            match root {
                Root::Status => Val::Int(self.0.into()),
                _ => Val::Missing,
            }
        }
        fn header(&self, _: &str) -> Option<&[u8]> {
            None
        }
        fn document(&self) -> &[u8] {
            self.1.as_bytes()
        }
    }

    fn decide(condition: &str, status: u16, body: &'static str, legible: Legible) -> Option<bool> {
        let expr = Expr::compile(condition, Vocabulary::Answer).unwrap();
        expr.decide(&Answer(status, body), legible)
    }

    #[test]
    fn what_does_not_depend_on_the_body_is_certain() {
        use Legible::{Begun, Json, Not, Text};
        let usual = "status == 200 and body.code != 0";
        for (condition, status, body, legible, wanted) in [
            (usual, 404, "", Not, Some(false)),
            (usual, 200, "", Not, None),
            (usual, 200, "<html>", Text, None),
            (usual, 200, "{\"code\":7}", Json, Some(true)),
            (usual, 200, "{\"code\":0}", Json, Some(false)),
            (usual, 200, "{}", Json, Some(false)),
            // A name that stands there twice, where it takes part and where it does not.
            (usual, 200, "{\"code\":0,\"code\":7}", Json, None),
            (usual, 200, "{\"code\":7,\"\\u0063ode\":0}", Json, None),
            (usual, 200, "{\"x\":0,\"x\":7,\"code\":7}", Json, Some(true)),
            // Another shape than the one that is asked for.
            (usual, 200, "[{\"code\":7}]", Json, None),
            (usual, 200, "\"ok\"", Json, None),
            ("body[0].code == 7", 200, "[{\"code\":7}]", Json, Some(true)),
            ("body[1].code == 7", 200, "[{\"code\":7}]", Json, Some(false)),
            ("body.a.code == 7", 200, "{\"a\":1}", Json, Some(false)),
            // What stands before the cut, and what may stand behind it.
            (usual, 200, "{\"code\":7,\"more\":\"", Begun, Some(true)),
            (usual, 200, "{\"code\":7", Begun, None),
            (usual, 200, "{\"more\":\"", Begun, None),
            ("body contains \"error\"", 200, "an error of", Begun, Some(true)),
            ("body contains \"error\"", 200, "all is", Begun, None),
            ("body contains \"error\"", 200, "all is well", Text, Some(false)),
            ("body contains \"error\"", 200, "", Not, None),
            ("status == 500 or body.code == 7", 500, "", Not, Some(true)),
            ("not (status == 200 and body.ok exists)", 200, "", Not, None),
            ("not (status == 200 and body.ok exists)", 201, "", Not, Some(true)),
            ("body.code in [1, 7]", 200, "<", Text, None),
            ("status == 204", 204, "", Not, Some(true)),
        ] {
            assert_eq!(
                decide(condition, status, body, legible),
                wanted,
                "{condition}: {status} {body}"
            );
        }
    }
}
