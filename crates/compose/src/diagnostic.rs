//! Complaints: what is wrong, where it stands, and what to write instead.
//!
//! A complaint carries its own excerpt of the source, so that it can be printed, sent or stored without the file.
//! Complaints are collected, never thrown: one run of the loader reports everything it can find.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Whether a complaint stops the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; the file loads.
    Warning,
    /// The file does not load.
    Error,
}

/// What a complaint is about, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Complaint {
    /// A file that cannot be read, or is too large.
    Unreadable,
    /// Not YAML, or YAML beyond what the loader accepts.
    Syntax,
    /// A key given twice in one mapping.
    DuplicateKey,
    /// A key that the Compose Specification does not have there.
    UnknownKey,
    /// A key that must be there and is not.
    MissingKey,
    /// A value of the wrong kind.
    WrongType,
    /// A value of the right kind that means nothing.
    InvalidValue,
    /// A `${…}` that cannot be substituted.
    Interpolation,
    /// A variable without a value.
    UnsetVariable,
    /// A reference to something that is not defined.
    UnknownReference,
    /// Things that need each other in a circle.
    Cycle,
    /// Two statements that exclude each other.
    Conflict,
    /// Legal Compose that a cluster cannot honour.
    Unsupported,
    /// Legal, but without any effect.
    Obsolete,
    /// Something that behaves differently on a cluster.
    Note,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Its line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// How many characters are meant.
    pub length: u32,
    /// The text of the line.
    pub excerpt: String,
}

/// A second place that explains the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    /// What is there.
    pub message: String,
    /// Where.
    pub place: Place,
}

/// One complaint. Its [`Display`](fmt::Display) form is several lines of plain text without a trailing newline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Whether it stops the load.
    pub severity: Severity,
    /// What it is about.
    pub complaint: Complaint,
    /// Where; absent where no file is to blame.
    pub place: Option<Place>,
    /// The path of the key, such as `services.web.ports[0]`; empty for a whole file.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// Other places that explain it.
    pub related: Vec<Related>,
}

impl Diagnostic {
    /// Whether it stops the load.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    pub(crate) fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn hint_if(&mut self, hint: Option<String>) -> &mut Self {
        if hint.is_some() {
            self.hint = hint;
        }
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{word}: {}", self.message)?;
        let width = self
            .place
            .iter()
            .chain(self.related.iter().map(|related| &related.place))
            .map(|place| place.line.to_string().len())
            .max()
            .unwrap_or(1);
        let margin = " ".repeat(width);
        if let Some(place) = &self.place {
            write!(f, "\n{margin}--> {}:{}:{}", place.file.display(), place.line, place.column)?;
            if !self.key.is_empty() {
                write!(f, " ({})", self.key)?;
            }
            excerpt(f, place, width)?;
        } else if !self.key.is_empty() {
            write!(f, "\n{margin}--> {}", self.key)?;
        }
        for related in &self.related {
            let place = &related.place;
            write!(
                f,
                "\n{margin}::: {}:{}:{}: {}",
                place.file.display(),
                place.line,
                place.column,
                related.message
            )?;
            excerpt(f, place, width)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n{margin} = help: {hint}")?;
        }
        Ok(())
    }
}

/// The line a place is on, and marks under what is meant. Long lines are cut around it.
fn excerpt(f: &mut fmt::Formatter<'_>, place: &Place, width: usize) -> fmt::Result {
    const SHOWN: usize = 120;
    let margin = " ".repeat(width);
    let column = place.column.saturating_sub(1) as usize;
    let characters: Vec<char> = place.excerpt.chars().collect();
    if characters.is_empty() {
        return Ok(());
    }
    let start = if column > SHOWN / 2 && characters.len() > SHOWN { column - SHOWN / 2 } else { 0 };
    let printable = |c: &char| match c {
        c if c.is_control() => ' ',
        c => *c,
    };
    let text: String = characters.iter().skip(start).take(SHOWN).map(printable).collect();
    let marks = (place.length.max(1) as usize).min(characters.len().saturating_sub(column).max(1)).min(SHOWN);
    write!(f, "\n{margin} |\n{:>width$} | {}", place.line, text.trim_end())?;
    write!(f, "\n{margin} | {}{}", " ".repeat(column - start), "^".repeat(marks))
}

/// A place by number: cheap enough for every node of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) file: u16,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) length: u32,
}

/// The path of a key while a tree is walked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Key<'a> {
    Root,
    Field(&'a Key<'a>, &'a str),
    Item(&'a Key<'a>, usize),
}
impl<'a> Key<'a> {
    pub(crate) fn field(&'a self, name: &'a str) -> Key<'a> {
        Key::Field(self, name)
    }
    pub(crate) fn item(&'a self, index: usize) -> Key<'a> {
        Key::Item(self, index)
    }
    /// The last name in it.
    pub(crate) fn name(&self) -> &'a str {
        match self {
            Key::Root => "file",
            Key::Field(_, name) => name,
            Key::Item(parent, _) => parent.name(),
        }
    }
}
impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Root => Ok(()),
            Key::Field(Key::Root, name) => f.write_str(name),
            Key::Field(parent, name) => write!(f, "{parent}.{name}"),
            Key::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Source {
    path: PathBuf,
    text: String,
    /// Byte offsets at which lines start.
    lines: Vec<usize>,
}
impl Source {
    fn line(&self, number: u32) -> &str {
        let index = (number as usize).saturating_sub(1);
        let Some(&start) = self.lines.get(index) else { return "" };
        let end = self.lines.get(index + 1).copied().unwrap_or(self.text.len());
        self.text[start..end].trim_end_matches(['\n', '\r'])
    }
}

/// More complaints than these help nobody, and a hostile file could make millions.
const MOST: usize = 500;
/// Bytes that substitution may make in all files together.
const MOST_SUBSTITUTED: usize = 64 << 20;
/// Ports that all services together may have.
const MOST_PORTS: usize = 100_000;

/// Collects complaints, and knows the files they are about.
pub(crate) struct Report {
    sources: Vec<Source>,
    found: Vec<Diagnostic>,
    allow_unsupported: bool,
    errors: usize,
    /// Bytes that substitution has made.
    substituted: usize,
    /// Ports that ranges have made.
    ports: usize,
    /// Takes what is said after the limit.
    scratch: Diagnostic,
}

impl Report {
    pub(crate) fn new(allow_unsupported: bool) -> Self {
        let scratch = Diagnostic {
            severity: Severity::Warning,
            complaint: Complaint::Note,
            place: None,
            key: String::new(),
            message: String::new(),
            hint: None,
            related: Vec::new(),
        };
        Self {
            sources: Vec::new(),
            found: Vec::new(),
            allow_unsupported,
            errors: 0,
            substituted: 0,
            ports: 0,
            scratch,
        }
    }

    /// Makes a file known; its number goes into spans.
    pub(crate) fn add_source(&mut self, path: &Path, text: String) -> u16 {
        let mut lines = vec![0];
        let bytes = text.as_bytes();
        for (index, byte) in bytes.iter().enumerate() {
            let lone_return = *byte == b'\r' && bytes.get(index + 1) != Some(&b'\n');
            if *byte == b'\n' || lone_return {
                lines.push(index + 1);
            }
        }
        self.sources.push(Source { path: path.to_owned(), text, lines });
        u16::try_from(self.sources.len() - 1).unwrap_or(u16::MAX)
    }

    /// How many more files can be told apart.
    pub(crate) fn is_full(&self) -> bool {
        self.sources.len() >= 10_000
    }

    pub(crate) fn text(&self, file: u16) -> &str {
        self.sources.get(usize::from(file)).map_or("", |source| &source.text)
    }

    pub(crate) fn line(&self, file: u16, line: u32) -> &str {
        self.sources.get(usize::from(file)).map_or("", |source| source.line(line))
    }

    pub(crate) fn place(&self, span: Span) -> Option<Place> {
        let source = self.sources.get(usize::from(span.file))?;
        (span.line > 0).then(|| Place {
            file: source.path.clone(),
            line: span.line,
            column: span.column,
            length: span.length,
            excerpt: source.line(span.line).to_owned(),
        })
    }

    pub(crate) fn error(
        &mut self,
        complaint: Complaint,
        span: Span,
        key: &Key<'_>,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.add(Severity::Error, complaint, span, key, message.into())
    }

    pub(crate) fn warn(
        &mut self,
        complaint: Complaint,
        span: Span,
        key: &Key<'_>,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.add(Severity::Warning, complaint, span, key, message.into())
    }

    /// Legal Compose that the cluster cannot honour: an error, or a warning where the user accepts the loss.
    pub(crate) fn unsupported(
        &mut self,
        span: Span,
        key: &Key<'_>,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        let severity = if self.allow_unsupported { Severity::Warning } else { Severity::Error };
        let mut message = message.into();
        if self.allow_unsupported {
            message.push_str("; ignored");
        }
        self.add(severity, Complaint::Unsupported, span, key, message)
    }

    /// Something no file is to blame for.
    pub(crate) fn general(&mut self, complaint: Complaint, message: impl Into<String>) -> &mut Diagnostic {
        self.add(Severity::Error, complaint, Span::default(), &Key::Root, message.into())
    }

    fn add(
        &mut self,
        severity: Severity,
        complaint: Complaint,
        span: Span,
        key: &Key<'_>,
        message: String,
    ) -> &mut Diagnostic {
        if severity == Severity::Error {
            self.errors += 1;
        }
        let place = if self.found.len() < MOST { self.place(span) } else { None };
        let diagnostic = Diagnostic {
            severity,
            complaint,
            place,
            key: key.to_string(),
            message,
            hint: None,
            related: vec![],
        };
        if self.found.len() < MOST {
            self.found.push(diagnostic);
            let last = self.found.len() - 1;
            &mut self.found[last]
        } else {
            self.scratch = diagnostic;
            &mut self.scratch
        }
    }

    /// Explains the latest complaint by another place.
    pub(crate) fn relate(&mut self, span: Span, message: impl Into<String>) {
        let Some(place) = self.place(span) else { return };
        if let Some(last) = self.found.last_mut() {
            last.related.push(Related { message: message.into(), place });
        }
    }

    /// Whether more is said than will be shown; then hints are not worth the time.
    pub(crate) fn is_overflowing(&self) -> bool {
        self.found.len() >= MOST
    }

    /// Counts text made by substitution; false when it is more than all files of an app could need.
    pub(crate) fn may_substitute(&mut self, bytes: usize) -> bool {
        self.substituted = self.substituted.saturating_add(bytes);
        self.substituted <= MOST_SUBSTITUTED
    }

    /// Counts ports made by ranges; false when they are more than one cluster could publish.
    pub(crate) fn may_expand(&mut self, ports: usize) -> bool {
        self.ports = self.ports.saturating_add(ports);
        self.ports <= MOST_PORTS
    }

    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    /// Everything found: by file and line, each once, errors that have no place last.
    pub(crate) fn finish(self) -> Vec<Diagnostic> {
        let order: std::collections::HashMap<&Path, usize> = self
            .sources
            .iter()
            .enumerate()
            .rev()
            .map(|(index, source)| (source.path.as_path(), index))
            .collect();
        let mut found = self.found;
        found.sort_by_key(|diagnostic| {
            diagnostic.place.as_ref().map_or((usize::MAX, 0, 0), |place| {
                (order.get(place.file.as_path()).copied().unwrap_or(usize::MAX), place.line, place.column)
            })
        });
        let mut unique: Vec<Diagnostic> = Vec::with_capacity(found.len());
        for diagnostic in found {
            // What several services share by an anchor or `extends` is wrong once, at its place.
            let same = |other: &&Diagnostic| {
                other.message == diagnostic.message
                    && other.place == diagnostic.place
                    && (other.place.is_some() || other.key == diagnostic.key)
            };
            if unique.iter().rev().take(20).find(same).is_none() {
                unique.push(diagnostic);
            }
        }
        if unique.len() >= MOST {
            let mut more = self.scratch;
            more.severity = Severity::Error;
            more.complaint = Complaint::Note;
            (more.place, more.hint, more.key) = (None, None, String::new());
            more.message = format!("more than {MOST} complaints; the rest is not shown");
            unique.push(more);
        }
        unique
    }
}

/// The known word closest to a misspelt one, if any is close.
pub(crate) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    if word.len() > 64 {
        return None;
    }
    let most = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|candidate| candidate.len() <= 64)
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours between two words; `_` and `-` are the same.
fn distance(left: &str, right: &str) -> usize {
    let normal = |text: &str| text.chars().map(|c| if c == '-' { '_' } else { c }).collect::<Vec<_>>();
    let (left, right) = (normal(left), normal(right));
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut current = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let substituted = previous[j] + usize::from(a != b);
            let mut best = substituted.min(previous[j + 1] + 1).min(current[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(before[j - 1] + 1);
            }
            current.push(best);
        }
        before = std::mem::replace(&mut previous, current);
    }
    previous[right.len()]
}

/// "did you mean" for a misspelt word.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    closest(word, known).map(|name| format!("did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_words_find_their_neighbours() {
        let known = ["image", "init", "ports", "healthcheck", "environment"];
        assert_eq!(closest("imgae", known), Some("image"));
        assert_eq!(closest("health-check", known), Some("healthcheck"));
        assert_eq!(closest("Ports", known), Some("ports"));
        assert_eq!(closest("enviroment", known), Some("environment"));
        assert_eq!(closest("zebra", known), None);
    }

    #[test]
    fn a_long_line_is_cut_around_its_place() {
        let mut report = Report::new(false);
        let text = format!("{}HERE{}", "a".repeat(500), "b".repeat(500));
        let file = report.add_source(Path::new("f.yaml"), text);
        report.error(
            Complaint::Syntax,
            Span { file, line: 1, column: 501, length: 4 },
            &Key::Root,
            "something",
        );
        let text = report.finish()[0].to_string();
        let lines: Vec<&str> = text.lines().collect();
        let caret = lines[4].find('^').unwrap();
        assert_eq!(&lines[3][caret..caret + 4], "HERE");
        assert!(lines[3].len() < 140);
    }
}
