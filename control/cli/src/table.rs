// SPDX-License-Identifier: Apache-2.0
//! Tables for people: columns as wide as their longest cell, two spaces apart.

use std::fmt::Write;

/// Rows below a header. Every row has as many cells as the header.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    columns: usize,
}

impl Table {
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(str::to_owned).to_vec()], columns: N }
    }

    /// Adds a row; an empty cell prints as `-`.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.columns, "a row has a cell for each column");
        let cells = cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell });
        self.rows.push(cells.to_vec());
    }

    /// The text; for no rows only the header, so that scripts see the same columns.
    pub fn print(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and values of one thing, a line each.
#[derive(Debug, Default)]
pub struct Details {
    lines: Vec<(String, String)>,
}

impl Details {
    #[must_use]
    pub fn line(mut self, name: &str, value: impl ToString) -> Self {
        self.lines.push((name.to_owned(), value.to_string()));
        self
    }

    /// Only if there is a value.
    #[must_use]
    pub fn some(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.line(name, value),
            None => self,
        }
    }

    pub fn print(&self) -> String {
        let width = self.lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
        let mut text = String::new();
        for (name, value) in &self.lines {
            let _ = writeln!(text, "{:<width$} {value}", format!("{name}:"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_space() {
        let mut table = Table::new(["NAME", "SIZE"]);
        table.row(["a".to_owned(), "20G".to_owned()]);
        table.row(["longer".to_owned(), String::new()]);
        assert_eq!(table.print(), "NAME    SIZE\na       20G\nlonger  -\n");
    }

    #[test]
    fn details_line_up() {
        let details = Details::default().line("name", "a").some("image", None::<u8>);
        assert_eq!(details.line("longer", 1).print(), "name:   a\nlonger: 1\n");
    }
}
