//! Tables for people: columns as wide as their widest cell, numbers to the right.
//!
//! What goes to a file or a pipe is whole, however wide. On a terminal a table that is too wide first loses the columns in
//! which there is nothing, then its text is cut, the widest column first; where that would leave too little of it, each row
//! becomes a few lines of its own, with nothing cut.

use super::{CliError, Out};

/// A column's head; numbers stand to the right.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// Text.
    Text(&'static str),
    /// A number.
    Number(&'static str),
}

impl Column {
    fn head(&self) -> &'static str {
        match self {
            Column::Text(name) | Column::Number(name) => name,
        }
    }
}

/// Text is not cut below so many characters: of less there is nothing to be told.
const LEAST: usize = 12;
/// Between two columns.
const GAP: usize = 2;

/// Rows under their heads.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Control characters become blanks: a cell is one line, and moves no cursor.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |cell: String| -> String {
            cell.chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect()
        };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes it.
    ///
    /// # Errors
    /// If stdout cannot be written to.
    pub fn print(&self, out: &mut Out) -> Result<(), CliError> {
        let lines = self.lines(out.width());
        lines.into_iter().try_for_each(|line| out.line(line))
    }

    fn cell<'a>(&self, row: &'a [String], column: usize) -> &'a str {
        row.get(column).map_or("", String::as_str)
    }

    /// Width of a column with all that is in it.
    fn natural(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| chars(self.cell(row, column)));
        cells.fold(chars(self.columns[column].head()), usize::max)
    }

    /// Whether a column says nothing in any row.
    fn says_nothing(&self, column: usize) -> bool {
        let nothing = |row: &Vec<String>| matches!(self.cell(row, column), "" | "-" | "0");
        !self.rows.is_empty() && self.rows.iter().all(nothing)
    }

    fn lines(&self, width: Option<usize>) -> Vec<String> {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let natural: Vec<usize> = all.iter().map(|c| self.natural(*c)).collect();
        let room = width.unwrap_or(usize::MAX);
        if total(&natural) <= room {
            return self.laid_out(&all, &natural);
        }
        let (told, silent): (Vec<usize>, Vec<usize>) = all.into_iter().partition(|c| !self.says_nothing(*c));
        let widths = told.iter().map(|c| natural[*c]).collect();
        let mut lines = match self.shrunk(&told, widths, room) {
            Some(widths) => self.laid_out(&told, &widths),
            None => self.blocks(&told, room),
        };
        if !silent.is_empty() {
            let heads: Vec<&str> = silent.iter().map(|c| self.columns[*c].head()).collect();
            lines.extend(wrapped(&format!("(nothing in {})", heads.join(", ")), room));
        }
        lines
    }

    /// Takes from the widest text columns what is too much; none where there is not enough to take.
    fn shrunk(&self, columns: &[usize], mut widths: Vec<usize>, room: usize) -> Option<Vec<usize>> {
        while total(&widths) > room {
            let text = |i: &usize| matches!(self.columns[columns[*i]], Column::Text(_));
            let least = |i: usize| LEAST.max(chars(self.columns[columns[i]].head()));
            let widest = (0..widths.len())
                .filter(text)
                .filter(|i| widths[*i] > least(*i))
                .max_by_key(|i| widths[*i])?;
            widths[widest] -= 1;
        }
        Some(widths)
    }

    fn laid_out(&self, columns: &[usize], widths: &[usize]) -> Vec<String> {
        let heads: Vec<String> = self.columns.iter().map(|c| c.head().to_owned()).collect();
        let line = |row: &Vec<String>| {
            let cells = columns.iter().zip(widths).map(|(c, &width)| {
                let cell = cut(self.cell(row, *c), width);
                match self.columns[*c] {
                    Column::Text(_) => format!("{cell:<width$}"),
                    Column::Number(_) => format!("{cell:>width$}"),
                }
            });
            let cells: Vec<String> = cells.collect();
            cells.join(&" ".repeat(GAP)).trim_end().to_owned()
        };
        std::iter::once(&heads).chain(&self.rows).map(line).collect()
    }

    /// Each row as lines of its own, for narrow terminals: nothing is cut.
    fn blocks(&self, columns: &[usize], room: usize) -> Vec<String> {
        let heads = columns.iter().map(|c| chars(self.columns[*c].head()));
        let heads = heads.max().unwrap_or(0);
        let indent = heads + GAP;
        let room = room.saturating_sub(indent).max(LEAST);
        let mut lines = Vec::new();
        for row in &self.rows {
            if !lines.is_empty() {
                lines.push(String::new());
            }
            for c in columns {
                let cell = self.cell(row, *c);
                if matches!(cell, "" | "-") {
                    continue;
                }
                let mut head = self.columns[*c].head();
                for part in wrapped(cell, room) {
                    lines.push(format!("{head:<indent$}{part}"));
                    head = "";
                }
            }
        }
        lines
    }
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

/// Of all columns and what is between them.
fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
}

/// A text in so many characters; what is left out is marked.
fn cut(text: &str, width: usize) -> String {
    if chars(text) <= width {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(width.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// A text in lines of at most so many characters, between words where there are any.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut length = 0;
    for word in text.split(' ') {
        let mut rest = word;
        if length > 0 && length + 1 + chars(word) <= room {
            lines.last_mut().expect("one to begin with").push(' ');
            length += 1;
        } else if length > 0 {
            lines.push(String::new());
            length = 0;
        }
        while length + chars(rest) > room {
            let at = rest
                .char_indices()
                .nth(room - length)
                .map_or(rest.len(), |(at, _)| at);
            lines.last_mut().expect("one to begin with").push_str(&rest[..at]);
            lines.push(String::new());
            (rest, length) = (&rest[at..], 0);
        }
        lines.last_mut().expect("one to begin with").push_str(rest);
        length += chars(rest);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_cells_stay_on_their_line() {
        let mut table = Table::new([Column::Text("PARTNER"), Column::Number("LAG")]);
        table.row(["acme".to_owned(), "1,234".to_owned()]);
        table.row(["ü\n\x1b[2J".to_owned(), "7".to_owned()]);
        table.row(["x".repeat(100), "7".to_owned()]);
        let lines = table.lines(None);
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("acme ") && lines[1].ends_with("  1,234"));
        assert!(!lines[2].contains(['\n', '\x1b']));
        assert!(lines[3].contains(&"x".repeat(100)), "a pipe gets all of it");
        let widths: Vec<usize> = lines.iter().map(|l| chars(l)).collect();
        assert!(widths.iter().all(|w| *w == widths[0]), "{lines:#?}");
    }

    fn reasons() -> Table {
        let mut table = Table::new([
            Column::Text("ID"),
            Column::Number("ATTEMPTS"),
            Column::Number("DEAD"),
            Column::Text("REASON"),
        ]);
        let reason = format!("refused: 422 {}", "the address is not one of theirs ".repeat(5));
        for n in 0..3 {
            table.row([format!("order-{n}"), "1".into(), "0".into(), reason.clone()]);
        }
        table
    }

    #[test]
    fn a_table_fits_its_terminal() {
        let table = reasons();
        let width = |lines: &[String]| lines.iter().map(|l| chars(l)).max().unwrap_or(0);
        let wide = table.lines(Some(400));
        assert!(wide[0].contains("DEAD") && !wide[1].contains('…'), "{wide:#?}");
        let usual = table.lines(Some(80));
        assert!(width(&usual) <= 80 && usual[1].contains('…'), "{usual:#?}");
        assert!(
            usual[0].contains("REASON") && !usual[0].contains("DEAD"),
            "what says nothing goes first: {usual:#?}"
        );
        assert_eq!(usual.last().map(String::as_str), Some("(nothing in DEAD)"));
        for narrow in [40, 30, 26] {
            let lines = table.lines(Some(narrow));
            assert!(width(&lines) <= narrow, "{narrow}: {lines:#?}");
        }
        // A few lines a row, and all of the reason in them.
        let blocks = table.lines(Some(30));
        let words: String = blocks
            .iter()
            .flat_map(|l| l.chars().skip(10))
            .filter(|c| *c != ' ')
            .collect();
        assert!(
            words.contains("theaddressisnotoneoftheirstheaddress"),
            "{blocks:#?}"
        );
        assert!(blocks[0].starts_with("ID        order-0") && !blocks.concat().contains('…'));
    }

    #[test]
    fn words_are_wrapped_and_long_ones_broken() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("äöü ß", 3), ["äöü", "ß"]);
    }
}
