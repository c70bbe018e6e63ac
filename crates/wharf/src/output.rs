//! What people and programs read: data goes to standard output, everything said about it to standard error.
//!
//! Colour adds nothing that is not also in the words, and is used on terminals only.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use serde::Serialize;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document, or one line of JSON for each thing in a stream.
    Json,
}

/// Where a command writes.
pub(crate) struct Output {
    /// How data is printed.
    pub(crate) format: Format,
    /// Say only what must be said.
    pub(crate) quiet: bool,
    /// Use colour on standard error.
    pub(crate) color: bool,
    /// Standard error is a terminal: progress may be redrawn.
    pub(crate) live: bool,
}

impl Output {
    /// For this process. `no_color` as in the environment variable `NO_COLOR`.
    pub(crate) fn new(format: Format, quiet: bool, no_color: bool) -> Self {
        let live = std::io::stderr().is_terminal();
        Self { format, quiet, color: live && !no_color, live }
    }

    /// Prints data as JSON.
    pub(crate) fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        self.data(&text)
    }

    /// Prints data as one line of JSON.
    pub(crate) fn json_line(&self, value: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string(value)?;
        self.data(&text)
    }

    /// Prints a line of data. A reader that went away is the end of the program's work, not an error to talk about.
    pub(crate) fn data(&self, line: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(crate::GoneReader::or)
    }

    /// Says something to the person.
    pub(crate) fn say(&self, line: &str) {
        if !self.quiet {
            self.must_say(line);
        }
    }

    /// Says something to the person also when asked to be quiet.
    pub(crate) fn must_say(&self, line: &str) {
        // Nobody to tell is no reason to stop.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }

    /// Prints a table, or the same things as JSON.
    pub(crate) fn list<T: Serialize>(
        &self,
        items: &[T],
        headers: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Json => self.json(&items),
            Format::Table => {
                let rows: Vec<_> = items.iter().map(row).collect();
                for line in table(headers, &rows) {
                    self.data(&line)?;
                }
                Ok(())
            }
        }
    }

    /// Text in a colour, where colours are shown.
    pub(crate) fn paint(&self, color: Color, text: &str) -> String {
        if self.color { format!("\x1b[{}m{text}\x1b[0m", color.code()) } else { text.to_owned() }
    }
}

/// Colours by what they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Color {
    /// As wanted.
    Good,
    /// On its way.
    Pending,
    /// Wrong.
    Bad,
    /// Beside the point.
    Dim,
    /// What it is about.
    Strong,
}
impl Color {
    const fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Pending => "33",
            Self::Bad => "31",
            Self::Dim => "2",
            Self::Strong => "1",
        }
    }
}

/// Lines of a table whose columns are as wide as their widest cell.
pub(crate) fn table(headers: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = headers.iter().map(|header| header.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let cells: Vec<_> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    std::iter::once(line(headers.to_vec()))
        .chain(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())))
        .collect()
}

/// A length of time for people: `5s`, `3m`, `2h`, `4d`.
pub(crate) fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_have_no_trailing_space() {
        let rows = [vec!["web".into(), "3/3".into()], vec!["database".into(), String::new()]];
        assert_eq!(table(&["NAME", "READY"], &rows), ["NAME      READY", "web       3/3", "database"]);
    }

    #[test]
    fn times_are_rough() {
        assert_eq!(rough(Duration::from_secs(59)), "59s");
        assert_eq!(rough(Duration::from_secs(3599)), "59m");
        assert_eq!(rough(Duration::from_secs(200_000)), "2d");
    }
}
