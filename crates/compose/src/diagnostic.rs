//! Complaints: what is wrong, where it stands, and what to write instead.
//!
//! A complaint carries its own excerpt of the source, so that it can be printed, sent or stored without the file.
//! Complaints are collected, never thrown: one run of the loader reports everything it can find.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Serialize;

/// Whether a complaint stops the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
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
    /// The text of the line; of a long one the part around the place.
    pub excerpt: String,
    /// The column that the excerpt begins at: 1, but for long lines.
    pub excerpt_column: u32,
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
        self.hint = Some(cut(hint.into()));
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
            let file = printable(&place.file.display().to_string());
            write!(f, "\n{margin}--> {file}:{}:{}", place.line, place.column)?;
            if !self.key.is_empty() {
                write!(f, " ({})", self.key)?;
            }
            excerpt(f, place, width)?;
        } else if !self.key.is_empty() {
            write!(f, "\n{margin}--> {}", self.key)?;
        }
        for related in &self.related {
            let place = &related.place;
            let file = printable(&place.file.display().to_string());
            write!(f, "\n{margin}::: {file}:{}:{}: {}", place.line, place.column, related.message)?;
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
    let column = place.column.saturating_sub(place.excerpt_column) as usize;
    let characters: Vec<char> = place.excerpt.chars().collect();
    if characters.is_empty() {
        return Ok(());
    }
    let start = if column > SHOWN / 2 && characters.len() > SHOWN { column - SHOWN / 2 } else { 0 };
    let printable = |c: &char| if is_unprintable(*c) { ' ' } else { *c };
    let text: String = characters.iter().skip(start).take(SHOWN).map(printable).collect();
    let marks = (place.length.max(1) as usize).min(characters.len().saturating_sub(column).max(1)).min(SHOWN);
    write!(f, "\n{margin} |\n{:>width$} | {}", place.line, text.trim_end())?;
    write!(f, "\n{margin} | {}{}", " ".repeat(column - start), "^".repeat(marks))
}

/// Longer texts of complaints are cut in the middle: a file may have keys of many megabytes.
const LONGEST: usize = 1000;

fn cut(text: String) -> String {
    let text = if text.len() <= LONGEST {
        text
    } else {
        let (head, tail) =
            (floor_boundary(&text, LONGEST * 3 / 4), floor_boundary(&text, text.len() - LONGEST / 4));
        format!("{} […] {}", &text[..head], &text[tail..])
    };
    printable(&text)
}

/// Characters that do something to a terminal, or to the order of others, are shown by their numbers.
fn printable(text: &str) -> String {
    if !text.contains(is_unprintable) {
        return text.to_owned();
    }
    let shown =
        text.chars().map(|c| if is_unprintable(c) { c.escape_default().to_string() } else { c.into() });
    shown.collect()
}

fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn floor_boundary(text: &str, mut index: usize) -> usize {
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

/// Takes text until it is long enough; a key of a deep tree is then not made as a whole.
struct Bounded(String);
impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > LONGEST {
            let room = floor_boundary(text, LONGEST.saturating_sub(self.0.len()).min(text.len()));
            self.0.push_str(&text[..room]);
            self.0.push('…');
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn key_text(key: &Key<'_>) -> String {
    let mut text = Bounded(String::new());
    // The one error is that it is long enough.
    let _ = fmt::write(&mut text, format_args!("{key}"));
    printable(&text.0)
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
    text: Rc<str>,
    /// Byte offsets at which lines start.
    lines: Vec<u32>,
    /// Where in long lines that were asked for every thousandth character or so begins, by line.
    steps: RefCell<HashMap<u32, Vec<u32>>>,
}

/// Lines of more bytes are not shown as a whole.
const LONG_LINE: usize = 400;
/// Characters of a long line that are shown on either side of a place.
const AROUND: usize = 150;
/// Characters between remembered offsets of a long line.
const STEP: usize = 1024;

impl Source {
    fn line(&self, number: u32) -> &str {
        let index = (number as usize).saturating_sub(1);
        let Some(&start) = self.lines.get(index) else { return "" };
        let end = self.lines.get(index + 1).map_or(self.text.len(), |end| *end as usize);
        self.text[start as usize..end].trim_end_matches(['\n', '\r'])
    }

    /// The byte offset of a character of a line, or where the line ends.
    fn offset(&self, number: u32, character: usize) -> usize {
        let line = self.line(number);
        if line.len() <= LONG_LINE {
            return line.char_indices().nth(character).map_or(line.len(), |(offset, _)| offset);
        }
        let mut known = self.steps.borrow_mut();
        let steps = known.entry(number).or_insert_with(|| {
            let starts = line.char_indices().step_by(STEP);
            starts.map(|(offset, _)| u32::try_from(offset).unwrap_or(u32::MAX)).collect()
        });
        let Some(&step) = steps.get(character / STEP) else { return line.len() };
        let rest = &line[step as usize..];
        rest.char_indices().nth(character % STEP).map_or(line.len(), |(offset, _)| step as usize + offset)
    }

    /// Where a place really is: the parser's idea of the end of a file may be behind it.
    fn nearest(&self, span: Span) -> (u32, u32) {
        let line = span.line.min(small(self.lines.len()));
        let end = self.line(line).len();
        let inside =
            line == span.line && (span.column == 1 || self.offset(line, span.column as usize - 2) < end);
        let column = if inside { span.column } else { small(self.line(line).chars().count() + 1) };
        (line, column)
    }

    /// What of a line is shown for a place in it, and the column that begins at.
    fn excerpt(&self, number: u32, column: u32) -> (String, u32) {
        let line = self.line(number);
        if line.len() <= LONG_LINE {
            return (line.to_owned(), 1);
        }
        let first = (column.saturating_sub(1) as usize).saturating_sub(AROUND);
        let (start, end) = (self.offset(number, first), self.offset(number, first + 2 * AROUND));
        (line[start..end].to_owned(), small(first + 1))
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// More errors, or warnings, than these help nobody, and a hostile file could make millions.
const MOST: usize = 500;
/// Bytes that substitution may make in all files together.
const MOST_SUBSTITUTED: usize = 64 << 20;
/// Ports that all services together may have.
const MOST_PORTS: usize = 100_000;
/// Known words that are compared with misspelt ones, in all.
const MOST_COMPARED: usize = 200_000;
/// Searches for the place of something in the text of a file.
const MOST_SEARCHES: usize = 2_000;

/// Collects complaints, and knows the files they are about.
pub(crate) struct Report {
    /// Fewer than 65,535.
    sources: Vec<Source>,
    /// The number of each file's latest text.
    numbers: HashMap<PathBuf, u16>,
    found: Vec<Diagnostic>,
    /// What was said already, and where: what several services share by an anchor or `extends` is wrong once.
    said: HashSet<u64>,
    allow_unsupported: bool,
    /// Whether nothing is said about what a cluster cannot honour.
    aside: bool,
    /// Whether variables stay as they are written, so that text with one may stand for anything.
    keeps_variables: bool,
    errors: usize,
    /// Lines with errors, until only others are of interest.
    wrong_lines: HashSet<(u16, u32)>,
    only_other_lines: bool,
    /// Complaints that are kept.
    kept_errors: usize,
    kept_warnings: usize,
    /// Whether there were more than are kept.
    overflowed: bool,
    /// Bytes that substitution has made.
    substituted: usize,
    /// Ports that ranges have made.
    ports: usize,
    /// Words that were compared with misspelt ones.
    compared: usize,
    /// Searches for better places so far.
    searches: usize,
    /// Where the latest complaint is, if it is kept.
    latest: Option<usize>,
    /// Takes what is said after the limit, or again.
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
            numbers: HashMap::new(),
            found: Vec::new(),
            said: HashSet::new(),
            allow_unsupported,
            aside: false,
            keeps_variables: false,
            errors: 0,
            wrong_lines: HashSet::new(),
            only_other_lines: false,
            kept_errors: 0,
            kept_warnings: 0,
            overflowed: false,
            substituted: 0,
            ports: 0,
            compared: 0,
            searches: 0,
            latest: None,
            scratch,
        }
    }

    /// From now on, errors count that stand on lines which have none yet: what was said of a line explains it.
    pub(crate) fn only_other_lines(&mut self) {
        self.only_other_lines = true;
    }

    /// Says nothing about what a cluster cannot honour.
    pub(crate) fn leave_cluster_aside(&mut self) {
        self.aside = true;
    }

    pub(crate) fn keep_variables(&mut self) {
        self.keeps_variables = true;
    }

    /// Whether text stands for a value that is not known.
    pub(crate) fn is_open(&self, text: &str) -> bool {
        self.keeps_variables && text.contains('$')
    }

    /// Makes a file known; its number goes into spans.
    pub(crate) fn add_source(&mut self, path: &Path, text: impl Into<Rc<str>>) -> u16 {
        let text = text.into();
        let same =
            |index: &&u16| self.sources.get(usize::from(**index)).is_some_and(|known| known.text == text);
        if let Some(known) = self.numbers.get(path).filter(same) {
            return *known;
        }
        let Some(number) = u16::try_from(self.sources.len()).ok().filter(|number| *number < u16::MAX) else {
            // Nobody reads complaints about so many files; these are about none.
            return u16::MAX;
        };
        let mut lines = vec![0];
        let bytes = text.as_bytes();
        for (index, byte) in bytes.iter().enumerate() {
            let lone_return = *byte == b'\r' && bytes.get(index + 1) != Some(&b'\n');
            if *byte == b'\n' || lone_return {
                lines.push(small(index + 1));
            }
        }
        self.sources.push(Source { path: path.to_owned(), text, lines, steps: RefCell::default() });
        self.numbers.insert(path.to_owned(), number);
        number
    }

    /// How many more files can be told apart.
    pub(crate) fn is_full(&self) -> bool {
        self.sources.len() >= 10_000
    }

    pub(crate) fn text(&self, file: u16) -> Rc<str> {
        self.sources.get(usize::from(file)).map_or_else(|| Rc::from(""), |source| Rc::clone(&source.text))
    }

    pub(crate) fn line(&self, file: u16, line: u32) -> &str {
        self.sources.get(usize::from(file)).map_or("", |source| source.line(line))
    }

    /// Some characters of a line, as far as there are any.
    pub(crate) fn part(&self, file: u16, line: u32, skipped: u32, length: u32) -> &str {
        let Some(source) = self.sources.get(usize::from(file)) else { return "" };
        let start = source.offset(line, skipped as usize);
        let end = if length == u32::MAX {
            source.line(line).len()
        } else {
            source.offset(line, skipped as usize + length as usize)
        };
        &source.line(line)[start..end]
    }

    /// Whether the text of a file may be searched for a better place: not for ever more warnings that nobody will see.
    pub(crate) fn may_search(&mut self) -> bool {
        self.searches += 1;
        !self.overflowed && self.searches <= MOST_SEARCHES
    }

    pub(crate) fn place(&self, span: Span) -> Option<Place> {
        let source = self.sources.get(usize::from(span.file))?;
        (span.line > 0).then(|| {
            let (line, column) = source.nearest(span);
            let (excerpt, excerpt_column) = source.excerpt(line, column);
            Place { file: source.path.clone(), line, column, length: span.length, excerpt, excerpt_column }
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
        if self.aside {
            return &mut self.scratch;
        }
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
        self.latest = None;
        if severity == Severity::Error {
            self.errors += 1;
            let line = (span.file, span.line);
            if !self.only_other_lines {
                self.wrong_lines.insert(line);
            } else if self.wrong_lines.contains(&line) {
                return &mut self.scratch;
            }
        }
        let kept = match severity {
            Severity::Error => &mut self.kept_errors,
            Severity::Warning => &mut self.kept_warnings,
        };
        if *kept >= MOST {
            self.overflowed = true;
            (self.scratch.hint, self.scratch.message) = (None, String::new());
            return &mut self.scratch;
        }
        let key = key_text(key);
        if !self.said.insert(identity(severity, span, &key, &message)) {
            return &mut self.scratch;
        }
        *kept += 1;
        let diagnostic = Diagnostic {
            severity,
            complaint,
            place: self.place(span),
            key,
            message: cut(message),
            hint: None,
            related: vec![],
        };
        let index = self.found.len();
        self.latest = Some(index);
        self.found.push(diagnostic);
        &mut self.found[index]
    }

    /// Explains the latest complaint by another place.
    pub(crate) fn relate(&mut self, span: Span, message: impl Into<String>) {
        let Some(latest) = self.latest else { return };
        let Some(place) = self.place(span) else { return };
        self.found[latest].related.push(Related { message: cut(message.into()), place });
    }

    /// Whether more is said than will be shown; then hints are not worth the time.
    pub(crate) fn is_overflowing(&self) -> bool {
        self.overflowed
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
        let order: HashMap<&Path, usize> = self
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
        if self.overflowed {
            found.push(Diagnostic {
                severity: if self.errors > 0 { Severity::Error } else { Severity::Warning },
                complaint: Complaint::Note,
                message: format!("more than {MOST} complaints; the rest is not shown"),
                hint: None,
                ..self.scratch
            });
        }
        found
    }

    /// "did you mean" for a misspelt word. A hostile file cannot make this long: the words that are compared in all are
    /// bounded, and then there is no answer.
    pub(crate) fn did_you_mean<'a>(
        &mut self,
        word: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Option<String> {
        let room = MOST_COMPARED.saturating_sub(self.compared);
        let compared = &mut self.compared;
        did_you_mean(word, known.into_iter().take(room).inspect(|_| *compared += 1))
    }
}

/// What makes two complaints the same: what is shared by several keys is one complaint at its place.
fn identity(severity: Severity, span: Span, key: &str, message: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    let key = if span.line > 0 { "" } else { key };
    (severity, span.file, span.line, span.column, span.length, key, message).hash(&mut hasher);
    hasher.finish()
}

/// The known word closest to a misspelt one, if any is close.
pub(crate) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    if word.len() > 64 {
        return None;
    }
    let most = (word.chars().count() / 3).clamp(1, 3);
    let length = word.chars().count();
    known
        .into_iter()
        .filter(|candidate| candidate.len() <= 64 && candidate.chars().count().abs_diff(length) <= most)
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
