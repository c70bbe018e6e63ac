//! Turns the text of a file into trees, one per document.
//!
//! Scalars are those of YAML 1.2's core schema as Compose reads it (`yes` and `on` are strings; `0440` is octal).
//! Aliases are expanded within a fixed budget and nesting has a fixed depth, so a small file cannot become a large
//! tree. A key given twice is an error that names both places. Merge keys (`<<`) never replace what is written out.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as YamlSpan, StrInput};

use crate::diagnostic::{Complaint, Key, Report, Span};
use crate::node::{Entry, Mapping, Node, Tag, Value};

/// Deeper than any sensible file, shallower than the stack.
const DEEPEST: usize = 100;
/// Values of one file: ten times those of a thousand services.
const MOST_VALUES: usize = 500_000;
/// Values that aliases may add to one file.
const MOST_EXPANDED: usize = 250_000;
/// Bytes of text that aliases may add to one file.
const MOST_EXPANDED_TEXT: usize = 32 << 20;

/// The documents of a file; `None` where it is not YAML, which has then been complained about.
pub(crate) fn parse(report: &mut Report, file: u16) -> Option<Vec<Node>> {
    let text = report.text(file);
    let mut reader = Reader {
        parser: Parser::new_from_str(&text),
        report,
        file,
        anchors: HashMap::new(),
        expanded: Size::default(),
        values: 0,
        failed: false,
    };
    let documents = reader.documents();
    documents.ok()
}

/// What was to be said has been said.
struct Stop;

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    nodes: usize,
    text: usize,
    /// Levels below it.
    depth: usize,
}
impl Size {
    fn scalar(text: usize) -> Self {
        Self { nodes: 1, text, depth: 0 }
    }
    fn hold(&mut self, child: Self) {
        self.nodes += child.nodes;
        self.text += child.text;
        self.depth = self.depth.max(child.depth + 1);
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    report: &'a mut Report,
    file: u16,
    /// Finished anchors by the parser's number.
    anchors: HashMap<usize, (Node, Size)>,
    expanded: Size,
    /// Values read so far.
    values: usize,
    failed: bool,
}

impl<'a> Reader<'a> {
    fn documents(&mut self) -> Result<Vec<Node>, Stop> {
        let mut documents = Vec::new();
        loop {
            let (event, _) = self.next()?;
            match event {
                Event::DocumentStart(_) => {
                    self.anchors.clear();
                    let (event, span) = self.next()?;
                    documents.push(self.node(event, span, &Key::Root, 0)?.0);
                }
                Event::StreamEnd => break,
                _ => {}
            }
        }
        if self.failed { Err(Stop) } else { Ok(documents) }
    }

    fn next(&mut self) -> Result<(Event<'a>, YamlSpan), Stop> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.syntax_error(&error)),
            None => Ok((Event::StreamEnd, YamlSpan::default())),
        }
    }

    fn span(&self, span: &YamlSpan) -> Span {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let length = if span.end.line() == span.start.line() {
            span.end.col().saturating_sub(span.start.col())
        } else {
            usize::MAX
        };
        Span {
            file: self.file,
            line: small(span.start.line().max(1)),
            column: small(span.start.col() + 1),
            length: small(length),
        }
    }

    fn syntax_error(&mut self, error: &ScanError) -> Stop {
        let marker = error.marker();
        let span = self.span(&YamlSpan::new(*marker, *marker));
        let tab_line = |line: u32| {
            let text = self.report.line(self.file, line);
            text.chars().take_while(|c| c.is_whitespace()).position(|c| c == '\t')
        };
        let lines = [span.line, span.line.saturating_sub(1), span.line + 1];
        let tab = lines.into_iter().find_map(|line| tab_line(line).map(|column| (line, column)));
        if let Some((line, column)) = tab {
            let column = u32::try_from(column + 1).unwrap_or(1);
            let span = Span { line, column, length: 1, ..span };
            self.report
                .error(Complaint::Syntax, span, &Key::Root, "not YAML: a tab cannot indent")
                .hint("indent with spaces");
        } else {
            let (span, message, hint) = self.explained(error.info(), span);
            self.report.error(Complaint::Syntax, span, &Key::Root, format!("not YAML: {message}")).hint(hint);
        }
        Stop
    }

    /// What the scanner found, in words for people who write Compose files; and where.
    fn explained(&self, found: &str, at: Span) -> (Span, String, String) {
        let span = self.shown(at);
        let line = self.report.line(self.file, span.line);
        let rest: String = line.chars().skip(span.column as usize - 1).collect();
        let word: String =
            rest.chars().skip(1).take_while(|c| c.is_alphanumeric() || "_-.".contains(*c)).collect();
        let has = |part: &str| found.contains(part);
        let (message, hint) = if has("mapping values are not allowed") {
            return self.explained_second_colon(span);
        } else if has("did not find expected key") || has("did not find expected <document start>") {
            return self.explained_indentation(span);
        } else if has("simple key expect") {
            (
                "a key needs a `:` behind it".to_owned(),
                "write `key: value`, or put text of several lines behind `|`".to_owned(),
            )
        } else if has("block sequence entries are not allowed") {
            (
                "a list cannot begin behind a key on the same line".to_owned(),
                "put each `- item` on a line of its own, or write `[item, item]`".to_owned(),
            )
        } else if has("did not find expected '-' indicator") {
            (
                "a line between the items of a list does not begin with `- `".to_owned(),
                "begin every item with `- ` in the same column, and indent what belongs to an item deeper"
                    .to_owned(),
            )
        } else if has("expected ',' or '}'") {
            (
                "a `{` is not closed, or a comma is missing".to_owned(),
                "separate fields by `, ` and close with `}`; text that contains `{`, `}` or `,` must be in quotes".to_owned(),
            )
        } else if has("expected ',' or ']'") {
            (
                "a `[` is not closed, or a comma is missing".to_owned(),
                "separate items by `, ` and close with `]`; text that contains `[`, `]` or `,` must be in quotes".to_owned(),
            )
        } else if has("illegal placement of ':'")
            || has("invalid indentation in flow")
            || has("misplaced bracket")
        {
            (
                "a `[` or `{` on a line above is not closed, or this one closes nothing".to_owned(),
                "close each `[` with `]` and each `{` with `}`".to_owned(),
            )
        } else if has("quoted scalar, found unexpected end of stream")
            || has("found unexpected document indicator")
            || has("invalid indentation in quoted")
        {
            (
                "a quote is not closed".to_owned(),
                "close it with the same quote that opens the text".to_owned(),
            )
        } else if has("invalid trailing content after double-quoted") {
            (
                "text follows a closing quote".to_owned(),
                "put the whole value in quotes; a quote within is written `\\\"` in double quotes, `''` in single ones".to_owned(),
            )
        } else if has("unknown escape character")
            || has("hexadecimal number")
            || has("Unicode character escape")
        {
            (
                "a backslash in double quotes begins an escape, and this is none".to_owned(),
                "write `\\\\` for a backslash, or use single quotes".to_owned(),
            )
        } else if has("unknown anchor") {
            (
                format!("there is no anchor `{word}` above this line"),
                format!(
                    "define it with `&{word}` above its use, in the same file; text that begins with `*` must be in quotes"
                ),
            )
        } else if has("scanning an anchor or alias") {
            (
                "`*` and `&` begin the name of an anchor, and here is none".to_owned(),
                "put text that begins with `*` or `&` in quotes".to_owned(),
            )
        } else if has("unexpected character") || has("directive") || has("a tag") {
            ("text cannot begin with this character".to_owned(), "put the text in quotes".to_owned())
        } else if has("unprintable character") {
            (
                "a character that cannot be printed".to_owned(),
                "write it as an escape in double quotes, such as `\\0`".to_owned(),
            )
        } else if has("block scalar") || has("indentation") {
            (
                "a line of a text of several lines is not indented like the others".to_owned(),
                "indent all lines behind `|` or `>` deeper than the key, by spaces".to_owned(),
            )
        } else if has("recursion limit") {
            (format!("nested deeper than {DEEPEST} levels"), "close what is open".to_owned())
        } else {
            (found.to_owned(), "put text that has special characters in quotes".to_owned())
        };
        (span, message, hint)
    }

    /// A `:` behind a value: either the value has one in it, or the line stands too deep.
    fn explained_second_colon(&self, span: Span) -> (Span, String, String) {
        let line = self.report.line(self.file, span.line);
        let (depth, text) = indented(line);
        let above = self.above(span.line);
        match above.map(|number| (number, indented(self.report.line(self.file, number)))) {
            Some((number, (outer, before)))
                if depth > outer && !before.contains(':') && !before.starts_with('-') =>
            {
                let (column, length) = (outer + 1, before.chars().count());
                let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                let span = Span { line: number, column: small(column), length: small(length), ..span };
                let message = "a key needs a `:` behind it".to_owned();
                (span, message, format!("write `{before}:`"))
            }
            Some((number, (outer, before))) if depth > outer && !before.ends_with([':', '-', '|', '>']) => {
                let column = u32::try_from(depth + 1).unwrap_or(1);
                let span = Span { column, length: u32::try_from(text.chars().count()).unwrap_or(1), ..span };
                let message =
                    format!("this line is indented deeper than line {number}, which has its value already");
                (span, message, format!("indent it by {outer} spaces as line {number} is"))
            }
            _ => {
                let message = "a value cannot have a `: ` in it".to_owned();
                (span, message, "put text that contains `: ` in quotes".to_owned())
            }
        }
    }

    /// A line that stands in no column that is open.
    fn explained_indentation(&self, span: Span) -> (Span, String, String) {
        let (depth, text) = indented(self.report.line(self.file, span.line));
        let mut open: Vec<usize> = Vec::new();
        let mut number = span.line;
        for _ in 0..100 {
            let Some(above) = self.above(number) else { break };
            number = above;
            let (outer, _) = indented(self.report.line(self.file, above));
            if open.last().is_none_or(|last| outer < *last) {
                open.push(outer);
            }
        }
        if text.starts_with("- ") || open.contains(&depth) || open.is_empty() {
            let message = "here must be another `key: value` of the same mapping".to_owned();
            let hint = "give the line a key, or indent it deeper than the key it belongs to";
            return (span, message, hint.to_owned());
        }
        let column = u32::try_from(depth + 1).unwrap_or(1);
        let span = Span { column, length: u32::try_from(text.chars().count()).unwrap_or(1), ..span };
        let spaces: Vec<String> = open.iter().rev().map(ToString::to_string).collect();
        let message = format!(
            "this line is indented by {depth} spaces, and no line above it that it could belong with is"
        );
        (span, message, format!("indent it by {} spaces", spaces.join(" or ")))
    }

    /// The last line above that says something.
    fn above(&self, line: u32) -> Option<u32> {
        (1..line).rev().take(1000).find(|number| {
            let (_, text) = indented(self.report.line(self.file, *number));
            !text.is_empty() && !text.starts_with('#')
        })
    }

    /// An error at the end of the file, or on an empty line, is shown behind the last text before it.
    fn shown(&self, span: Span) -> Span {
        let mut shown = span;
        while shown.line > 1 && self.report.line(self.file, shown.line).trim().is_empty() {
            shown.line -= 1;
        }
        if shown.line != span.line {
            let text = self.report.line(self.file, shown.line).trim_end();
            shown.column = u32::try_from(text.chars().count()).unwrap_or(u32::MAX).max(1);
            shown.length = 1;
        }
        shown
    }

    /// One value; `event` opens it.
    fn node(
        &mut self,
        event: Event<'a>,
        span: YamlSpan,
        key: &Key<'_>,
        depth: usize,
    ) -> Result<(Node, Size), Stop> {
        let place = self.span(&span);
        if depth > DEEPEST {
            return Err(self.too_deep(place));
        }
        self.values += 1;
        if self.values > MOST_VALUES {
            let message = format!("the file has more values than the {MOST_VALUES} that the loader accepts");
            self.report
                .error(Complaint::Syntax, place, &Key::Root, message)
                .hint("cut the file into several, each with a part of the services");
            return Err(Stop);
        }
        let (anchor, mut node, size) = match event {
            Event::Alias(anchor) => return self.alias(anchor, place, key, depth),
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|tag| (tag.handle.clone(), tag.suffix.clone()));
                let size = Size::scalar(text.len());
                let node = self.scalar(&text, style, tag.as_ref(), place, key);
                (anchor, node, size)
            }
            Event::SequenceStart(anchor, tag) => {
                let tag = tag.map(|tag| (tag.handle.clone(), tag.suffix.clone()));
                let (items, size) = self.sequence(key, depth)?;
                let tag = self.collection_tag(tag.as_ref(), "seq", place, key);
                (anchor, Node { span: place, tag, value: Value::Sequence(items) }, size)
            }
            Event::MappingStart(anchor, tag) => {
                let tag = tag.map(|tag| (tag.handle.clone(), tag.suffix.clone()));
                let (mapping, size) = self.mapping(key, depth)?;
                let tag = self.collection_tag(tag.as_ref(), "map", place, key);
                (anchor, Node { span: place, tag, value: Value::Mapping(mapping) }, size)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => (0, Node::new(place, Value::Null), Size::scalar(0)),
        };
        if node.tag == Tag::Reset {
            node.value = Value::Null;
        }
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), size));
            self.spend(size, place, key)?;
        }
        Ok((node, size))
    }

    fn alias(
        &mut self,
        anchor: usize,
        place: Span,
        key: &Key<'_>,
        depth: usize,
    ) -> Result<(Node, Size), Stop> {
        let Some((node, size)) = self.anchors.get(&anchor) else {
            self.report
                .error(Complaint::Cycle, place, key, "this alias stands inside the value it refers to")
                .hint("write out what the alias stands for");
            return Err(Stop);
        };
        let size = *size;
        if depth + size.depth > DEEPEST {
            return Err(self.too_deep(place));
        }
        let node = node.clone();
        self.spend(size, place, key)?;
        Ok((node, size))
    }

    fn too_deep(&mut self, place: Span) -> Stop {
        let message = format!("nested deeper than {DEEPEST} levels");
        self.report
            .error(Complaint::Syntax, place, &Key::Root, message)
            .hint("check what is indented; a tenth of that is enough for a Compose file");
        Stop
    }

    /// Counts what is copied; must be asked before the copy is used for another one.
    fn spend(&mut self, size: Size, place: Span, key: &Key<'_>) -> Result<(), Stop> {
        self.expanded.nodes += size.nodes;
        self.expanded.text += size.text;
        if self.expanded.nodes > MOST_EXPANDED || self.expanded.text > MOST_EXPANDED_TEXT {
            self.report
                .error(Complaint::Syntax, place, key, "aliases expand to more than the loader accepts")
                .hint(format!("at most {MOST_EXPANDED} values may come from aliases"));
            return Err(Stop);
        }
        Ok(())
    }

    fn sequence(&mut self, key: &Key<'_>, depth: usize) -> Result<(Vec<Node>, Size), Stop> {
        let mut items = Vec::new();
        let mut size = Size::scalar(0);
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok((items, size));
            }
            let (item, its) = self.node(event, span, &key.item(items.len()), depth + 1)?;
            size.hold(its);
            items.push(item);
        }
    }

    fn mapping(&mut self, key: &Key<'_>, depth: usize) -> Result<(Mapping, Size), Stop> {
        let mut mapping = Mapping::default();
        let mut merged: Option<Entry> = None;
        let mut size = Size::scalar(0);
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let place = self.span(&span);
            let plain = matches!(&event, Event::Scalar(_, ScalarStyle::Plain, _, _));
            let (mut name, _) = self.node(event, span, key, depth + 1)?;
            let (event, span) = self.next()?;
            let text = match &mut name.value {
                Value::String(text) => std::mem::take(text),
                _ => name.scalar_text().unwrap_or_default(),
            };
            let (value, its) = self.node(event, span, &key.field(&text), depth + 1)?;
            size.hold(its);
            size.hold(Size::scalar(text.len()));
            if name.as_str().is_none() {
                self.illegal_key(&name, &text, place, key);
                continue;
            }
            let entry = Entry { key: place, node: value };
            if plain && text == "<<" {
                match &merged {
                    Some(first) => {
                        let first = first.key;
                        self.report
                            .error(
                                Complaint::DuplicateKey,
                                place,
                                key,
                                "the merge key `<<` is given twice in one mapping",
                            )
                            .hint("merge several mappings with one list: `<<: [*one, *two]`");
                        self.report.relate(first, "given first here");
                        self.failed = true;
                    }
                    None => merged = Some(entry),
                }
                continue;
            }
            if let Err((text, first)) = mapping.insert_new(text, entry) {
                let message = format!("the key `{text}` is given twice");
                self.report
                    .error(Complaint::DuplicateKey, place, &key.field(&text), message)
                    .hint("keep one of them");
                self.report.relate(first, "given first here");
                self.failed = true;
            }
        }
        if let Some(entry) = merged {
            self.merge_key(&mut mapping, entry, key);
        }
        Ok((mapping, size))
    }

    fn illegal_key(&mut self, name: &Node, text: &str, place: Span, key: &Key<'_>) {
        let message = match name.value {
            Value::Sequence(_) | Value::Mapping(_) => {
                "a key must be a string, not a list or a mapping".to_owned()
            }
            Value::Null => "a key must be a string; this one is empty".to_owned(),
            _ => format!("a key must be a string; `{text}` is {}", name.kind()),
        };
        let hint = match name.value {
            Value::Mapping(_) => "put text that contains `{` in quotes".to_owned(),
            Value::Sequence(_) => "put text that contains `[` in quotes".to_owned(),
            Value::Null => "write a name before the colon".to_owned(),
            _ => format!("put it in quotes: \"{text}\""),
        };
        self.report.error(Complaint::Syntax, place, key, message).hint(hint);
        self.failed = true;
    }

    fn merge_key(&mut self, mapping: &mut Mapping, entry: Entry, key: &Key<'_>) {
        let place = entry.place();
        let sources = match entry.node.value {
            Value::Sequence(items) => items,
            _ => vec![entry.node],
        };
        for source in sources {
            let kind = source.kind();
            let Value::Mapping(source) = source.value else {
                self.report
                    .error(
                        Complaint::WrongType,
                        place,
                        key,
                        format!("`<<` merges mappings, but this is {kind}"),
                    )
                    .hint("give an alias of a mapping, or a list of them: `<<: *name`");
                self.failed = true;
                continue;
            };
            for (name, entry) in source {
                // What is written out, and what an earlier source gave, stays.
                let _ = mapping.insert_new(name, entry);
            }
        }
    }

    fn collection_tag(
        &mut self,
        tag: Option<&(String, String)>,
        core: &str,
        place: Span,
        key: &Key<'_>,
    ) -> Tag {
        match tag {
            None => Tag::None,
            Some((handle, suffix)) if is_core(handle) && suffix == core => Tag::None,
            Some(tag) => self.merge_tag(tag, place, key),
        }
    }

    fn merge_tag(&mut self, (handle, suffix): &(String, String), place: Span, key: &Key<'_>) -> Tag {
        match (handle.as_str(), suffix.as_str()) {
            ("!", "reset") => Tag::Reset,
            ("!", "override") => Tag::Override,
            ("!" | "", "") => Tag::None,
            _ => {
                let shown = if is_core(handle) { format!("!!{suffix}") } else { format!("{handle}{suffix}") };
                let hint = crate::diagnostic::closest(suffix, ["reset", "override"]).map_or_else(
                    || "Compose has the tags `!reset` and `!override`".to_owned(),
                    |name| format!("did you mean `!{name}`?"),
                );
                let message = format!("the tag `{shown}` means nothing here");
                self.report.error(Complaint::Syntax, place, key, message).hint(hint);
                Tag::None
            }
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&(String, String)>,
        place: Span,
        key: &Key<'_>,
    ) -> Node {
        let untagged =
            || if style == ScalarStyle::Plain { plain(text) } else { Value::String(text.to_owned()) };
        let Some((handle, suffix)) = tag else {
            return Node::new(place, untagged());
        };
        if !is_core(handle) {
            let tag = self.merge_tag(&(handle.clone(), suffix.clone()), place, key);
            let value =
                if handle == "!" && suffix.is_empty() { Value::String(text.to_owned()) } else { untagged() };
            return Node { span: place, tag, value };
        }
        let value = plain(text);
        let value = match (suffix.as_str(), value) {
            ("str", _) => Value::String(text.to_owned()),
            ("int", value @ Value::Int(_))
            | ("float", value @ Value::Float(_))
            | ("bool", value @ Value::Bool(_))
            | ("null", value @ Value::Null) => value,
            #[expect(clippy::cast_precision_loss, reason = "what `!!float` asks for")]
            ("float", Value::Int(number)) => Value::Float(number as f64),
            ("int" | "float" | "bool" | "null", _) => {
                let message = format!("`{text}` is not what the tag `!!{suffix}` says");
                self.report
                    .error(Complaint::Syntax, place, key, message)
                    .hint("remove the tag, or write a value of that kind");
                self.failed = true;
                Value::Invalid
            }
            _ => {
                self.merge_tag(&(handle.clone(), suffix.clone()), place, key);
                untagged()
            }
        };
        Node::new(place, value)
    }
}

/// By how many spaces a line is indented, and what is written there.
fn indented(line: &str) -> (usize, &str) {
    let text = line.trim_start_matches(' ');
    (line.len() - text.len(), text.trim_end())
}

fn is_core(handle: &str) -> bool {
    matches!(handle, "tag:yaml.org,2002:" | "!!")
}

/// What a plain scalar means.
pub(crate) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let starts_like_a_number =
        text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) && text.len() <= 64;
    if !starts_like_a_number {
        return Value::String(text.to_owned());
    }
    integer(text)
        .map(Value::Int)
        .or_else(|| float(text).map(Value::Float))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// As Go's base 0: `0x`, `0o`, `0b`, and a leading zero is octal; `_` separates digits.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let digits = digits.replace('_', "");
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        Some(pair) if pair.starts_with('0') => (8, &digits[1..]),
        _ => (10, &digits[..]),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -number } else { number }).ok()
}

/// `1.5`, `.5`, `1e3`; digits only, so that `1.2.3` and `1e` stay text.
fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(index) => (&unsigned[..index], Some(&unsigned[index + 1..])),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let legal_mantissa = digits(whole) && digits(fraction) && (!whole.is_empty() || !fraction.is_empty());
    let legal_exponent = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    if !legal_mantissa || !legal_exponent {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> (Option<Vec<Node>>, String) {
        let mut report = Report::new(false);
        let file = report.add_source(Path::new("compose.yaml"), text.to_owned());
        let documents = parse(&mut report, file);
        let complaints: Vec<String> = report.finish().iter().map(ToString::to_string).collect();
        (documents, complaints.join("\n"))
    }

    fn one(text: &str) -> Node {
        let (documents, complaints) = read(text);
        assert_eq!(complaints, "");
        documents.unwrap().remove(0)
    }

    #[test]
    fn scalars_are_those_compose_sees() {
        for (text, expected) in [
            ("yes", "String(\"yes\")"),
            ("on", "String(\"on\")"),
            ("true", "Bool(true)"),
            ("0440", "Int(288)"),
            ("0o17", "Int(15)"),
            ("1_000", "Int(1000)"),
            ("08", "Float(8.0)"),
            ("1.5", "Float(1.5)"),
            ("1e3", "Float(1000.0)"),
            ("1.2.3", "String(\"1.2.3\")"),
            ("80:80", "String(\"80:80\")"),
            ("~", "Null"),
            ("", "Null"),
            ("-", "String(\"-\")"),
            ("+", "String(\"+\")"),
            (".", "String(\".\")"),
            ("inf", "String(\"inf\")"),
        ] {
            assert_eq!(format!("{:?}", plain(text)), expected, "{text}");
        }
    }

    #[test]
    fn merge_keys_add_and_never_replace() {
        let node = one("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  <<: [*a, *b]\n  x: 9\n");
        let c = node.as_mapping().unwrap().get("c").unwrap().as_mapping().unwrap();
        let text = |key: &str| c.get(key).unwrap().scalar_text().unwrap();
        assert_eq!([text("x"), text("y"), text("z")], ["9", "2", "4"]);
    }

    #[test]
    fn a_key_given_twice_names_both_places() {
        let (documents, complaints) = read("services:\n  web:\n    image: a\n    image: b\n");
        assert!(documents.is_none());
        insta::assert_snapshot!(complaints, @r"
        error: the key `image` is given twice
         --> compose.yaml:4:5 (services.web.image)
          |
        4 |     image: b
          |     ^^^^^
         ::: compose.yaml:3:5: given first here
          |
        3 |     image: a
          |     ^^^^^
          = help: keep one of them
        ");
    }

    #[test]
    fn a_tab_is_named() {
        let (_, complaints) = read("services:\n\tweb:\n\t\timage: a\n");
        insta::assert_snapshot!(complaints, @r"
        error: not YAML: a tab cannot indent
         --> compose.yaml:2:1
          |
        2 |  web:
          | ^
          = help: indent with spaces
        ");
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        let (documents, complaints) = read(&text);
        assert!(documents.is_none());
        assert!(complaints.contains("aliases expand to more than"), "{complaints}");
    }

    #[test]
    fn deep_nesting_and_circles_are_refused() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let (_, complaints) = read(&nested(110));
        assert!(complaints.contains("nested deeper"), "{complaints}");
        let (_, complaints) = read(&nested(5000));
        assert!(complaints.contains("nested deeper"), "{complaints}");
        // Each line is shallow, but stands on the one before.
        let nest = |n: usize| format!("a{}: &a{} [[[[[[[[[[*a{}]]]]]]]]]]\n", n + 1, n + 1, n);
        let tower: String = (0..2000).map(nest).collect();
        let (_, complaints) = read(&format!("a0: &a0 x\n{tower}"));
        assert!(complaints.contains("nested deeper"), "{complaints}");
        let (_, complaints) = read("a: &a [*a]\n");
        assert!(complaints.contains("inside the value it refers to"), "{complaints}");
    }
}
