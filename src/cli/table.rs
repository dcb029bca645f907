//! Tables for people: columns as wide as their widest cell, numbers to the right.

use super::{CliError, Out};

/// A column's head; numbers stand to the right.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// Text.
    Text(&'static str),
    /// A number.
    Number(&'static str),
}

/// Longest cell; the rest is cut with an ellipsis. `--json` shows it whole.
const WIDEST: usize = 60;

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
            let mut out: String = cell
                .chars()
                .take(WIDEST)
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            if cell.chars().nth(WIDEST).is_some() {
                out.pop();
                out.push('…');
            }
            out
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
        self.lines().into_iter().try_for_each(|line| out.line(line))
    }

    fn lines(&self) -> Vec<String> {
        let head = self.columns.iter().map(|c| match c {
            Column::Text(name) | Column::Number(name) => (*name).to_owned(),
        });
        let all: Vec<Vec<String>> = std::iter::once(head.collect())
            .chain(self.rows.iter().cloned())
            .collect();
        let width = |i: usize| {
            all.iter()
                .filter_map(|r| r.get(i))
                .map(|c| c.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        all.iter()
            .map(|row| {
                let cells = row
                    .iter()
                    .zip(&self.columns)
                    .zip(&widths)
                    .map(|((cell, column), &width)| match column {
                        Column::Text(_) => format!("{cell:<width$}"),
                        Column::Number(_) => format!("{cell:>width$}"),
                    });
                cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
            })
            .collect()
    }
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
        let lines = table.lines();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("acme ") && lines[1].ends_with("  1,234"));
        assert!(!lines[2].contains(['\n', '\x1b']));
        assert!(lines[3].contains('…'));
        let widths: Vec<usize> = lines.iter().map(|l| l.chars().count()).collect();
        assert!(widths.iter().all(|w| *w == widths[0]), "{lines:#?}");
    }
}
