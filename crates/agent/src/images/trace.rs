//! What a builder says, as lines for people.
//!
//! The classic builder says text. BuildKit says what its steps are, when each begins and ends, and what they print, in messages of its
//! own (`moby.buildkit.v1.StatusResponse`); of these the few fields that are shown are read here.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

/// Lines kept for whoever asks why a build failed.
const LAST: usize = 30;

/// A message of the engine while it builds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message {
    id: String,
    stream: String,
    status: String,
    error: String,
    aux: serde_json::Value,
}

/// What came of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// The image's identifier.
    Built(String),
    /// The builder's words.
    Failed(String),
    /// Neither was said.
    CutOff,
}

/// A complaint without the parts of BuildKit that it passed through, which say nothing about the build.
fn without_route(error: &str) -> &str {
    const ROUTE: [&str; 3] = [
        "failed to solve with frontend dockerfile.v0: ",
        "failed to solve: ",
        "failed to create LLB definition: ",
    ];
    let shorter = ROUTE.iter().find_map(|part| error.strip_prefix(part));
    shorter.map_or(error, without_route)
}

/// Reads the engine's messages, and keeps the last lines.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The beginning of a line that has not ended.
    partial: String,
    built: Option<String>,
    failed: Option<String>,
    last: Vec<String>,
    /// BuildKit's steps: name, and whether its beginning and its end were told.
    steps: BTreeMap<String, Told>,
}
#[derive(Debug, Default)]
struct Told {
    begun: bool,
    over: bool,
    name: String,
    /// The beginning of a line of its output that has not ended.
    partial: String,
}

impl Progress {
    /// The lines that a message of the engine makes.
    pub(super) fn read(&mut self, message: &[u8]) -> Vec<String> {
        let Ok(message) = serde_json::from_slice::<Message>(message) else { return Vec::new() };
        let mut lines = Vec::new();
        if !message.error.is_empty() {
            self.failed = Some(message.error);
        }
        match message.id.as_str() {
            "moby.buildkit.trace" => {
                let trace = message.aux.as_str().and_then(|text| STANDARD.decode(text).ok());
                self.trace(&trace.unwrap_or_default(), &mut lines);
            }
            _ => {
                if let Some(id) = message.aux["ID"].as_str() {
                    self.built = Some(id.to_owned());
                }
                whole_lines(&mut self.partial, &message.stream, |line| lines.push(line.to_owned()));
                // A pull's bars are not lines; that it goes on is.
                if message.id.is_empty() && !message.status.is_empty() {
                    lines.push(message.status);
                }
            }
        }
        let lines: Vec<_> =
            lines.iter().map(|line| plain(line)).filter(|line| !line.trim().is_empty()).collect();
        self.last.extend(lines.iter().cloned());
        self.last.drain(..self.last.len().saturating_sub(LAST));
        lines
    }

    /// What came of it, once the engine has said everything.
    pub(super) fn ending(&self) -> Ending {
        match (&self.failed, &self.built) {
            (Some(error), _) => Ending::Failed(without_route(error).to_owned()),
            (None, Some(id)) => Ending::Built(id.clone()),
            (None, None) => Ending::CutOff,
        }
    }

    /// The step that was at work last, as the Dockerfile has it.
    pub(super) fn step(&self) -> Option<String> {
        let classic = self.last.iter().rev().find(|line| line.starts_with("Step "));
        let buildkit =
            || self.last.iter().rev().find(|line| line.starts_with('[') && !line.starts_with("[internal]"));
        classic.or_else(buildkit).cloned()
    }

    fn trace(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        for (field, value) in fields(bytes) {
            match (field, value) {
                (1, Value::Bytes(vertex)) => self.vertex(vertex, lines),
                (3, Value::Bytes(log)) => self.log(log, lines),
                _ => {}
            }
        }
    }

    fn vertex(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        let (mut digest, mut name, mut error) = (String::new(), String::new(), String::new());
        let (mut cached, mut begun, mut over) = (false, false, false);
        for (field, value) in fields(bytes) {
            match (field, value) {
                (1, Value::Bytes(text)) => digest = String::from_utf8_lossy(text).into_owned(),
                (3, Value::Bytes(text)) => name = String::from_utf8_lossy(text).into_owned(),
                (4, Value::Number(number)) => cached = number != 0,
                (5, Value::Bytes(_)) => begun = true,
                (6, Value::Bytes(_)) => over = true,
                (7, Value::Bytes(text)) => error = String::from_utf8_lossy(text).into_owned(),
                _ => {}
            }
        }
        let told = self.steps.entry(digest).or_default();
        told.name.clone_from(&name);
        if begun && !told.begun && !cached {
            told.begun = true;
            lines.push(name.clone());
        }
        if cached && !told.over {
            told.over = true;
            lines.push(format!("{name} (cached)"));
        }
        if over && !told.over {
            told.over = true;
            if !error.is_empty() {
                lines.push(format!("{name}: {error}"));
            }
        }
    }

    fn log(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        let (mut vertex, mut text) = (String::new(), String::new());
        for (field, value) in fields(bytes) {
            match (field, value) {
                (1, Value::Bytes(digest)) => vertex = String::from_utf8_lossy(digest).into_owned(),
                (4, Value::Bytes(message)) => text = String::from_utf8_lossy(message).into_owned(),
                _ => {}
            }
        }
        let told = self.steps.entry(vertex).or_default();
        whole_lines(&mut told.partial, &text, |line| lines.push(format!("  {line}")));
    }
}

/// Adds text to a line that has begun; every line that is whole by then is told.
fn whole_lines(partial: &mut String, text: &str, mut tell: impl FnMut(&str)) {
    partial.push_str(text);
    while let Some(end) = partial.find('\n') {
        tell(partial[..end].trim_end_matches('\r'));
        partial.drain(..=end);
    }
}

/// Without the signs by which the classic builder colours what commands print on their standard error.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                // `[`, parameters, a letter.
                chars.by_ref().take_while(|c| !c.is_ascii_alphabetic()).for_each(drop);
            }
            c if c.is_control() && c != '\t' => {}
            c => out.push(c),
        }
    }
    out
}

pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message as protocol buffers encode it; ends at what cannot be read.
pub(super) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            1 => Value::Bytes(bytes.split_off(..8)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Value::Bytes(bytes.split_off(..length)?)
            }
            5 => Value::Bytes(bytes.split_off(..4)?),
            _ => return None,
        };
        Some((key >> 3, value))
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(messages: &[String]) -> (Vec<String>, Progress) {
        let mut progress = Progress::default();
        let lines = messages.iter().flat_map(|message| progress.read(message.as_bytes())).collect();
        (lines, progress)
    }

    #[test]
    fn what_a_complaint_passed_through_is_left_out() {
        let said = r#"{"error":"failed to solve with frontend dockerfile.v0: failed to create LLB definition: dockerfile parse error line 1: unknown instruction: FORM"}"#;
        let (_, progress) = read(&[said.into()]);
        let reason = "dockerfile parse error line 1: unknown instruction: FORM";
        assert_eq!(progress.ending(), Ending::Failed(reason.into()));
    }

    #[test]
    fn the_classic_builders_text_becomes_lines() {
        let (lines, progress) = read(&[
            r#"{"stream":"Step 1/2 : FROM busybox:1"}"#.into(),
            r#"{"stream":"\n"}"#.into(),
            r#"{"stream":"Step 2/2 : RUN ls /x\n"}"#.into(),
            r#"{"stream":"\u001b[91mls: /x: No such file\n\u001b[0m"}"#.into(),
            r#"{"errorDetail":{"code":1},"error":"returned a non-zero code: 1"}"#.into(),
        ]);
        assert_eq!(lines, ["Step 1/2 : FROM busybox:1", "Step 2/2 : RUN ls /x", "ls: /x: No such file"]);
        assert_eq!(progress.step().as_deref(), Some("Step 2/2 : RUN ls /x"));
        assert_eq!(progress.ending(), Ending::Failed("returned a non-zero code: 1".into()));
    }

    #[test]
    fn what_was_built_is_said_by_either_builder() {
        let (_, classic) = read(&[r#"{"aux":{"ID":"sha256:1"}}"#.into()]);
        assert_eq!(classic.ending(), Ending::Built("sha256:1".into()));
        let (_, buildkit) = read(&[r#"{"id":"moby.image.id","aux":{"ID":"sha256:2"}}"#.into()]);
        assert_eq!(buildkit.ending(), Ending::Built("sha256:2".into()));
        assert_eq!(Progress::default().ending(), Ending::CutOff);
    }

    /// A field with bytes, as protocol buffers have it.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = content.len();
        while length >= 0x80 {
            out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        out.push(u8::try_from(length).unwrap());
        out.extend_from_slice(content);
        out
    }
    fn trace(parts: &[Vec<u8>]) -> String {
        format!(r#"{{"id":"moby.buildkit.trace","aux":"{}"}}"#, STANDARD.encode(parts.concat()))
    }

    #[test]
    fn buildkits_steps_are_told_once_and_their_output_line_by_line() {
        let begun = [field(1, b"sha256:a"), field(3, b"[2/2] RUN make"), field(5, b"\x08\x01")].concat();
        let failed = [begun.clone(), field(6, b"\x08\x02"), field(7, b"exit code: 2")].concat();
        let log = |text: &[u8]| [field(1, b"sha256:a"), field(4, text)].concat();
        let (lines, progress) = read(&[
            trace(&[field(1, &begun)]),
            trace(&[field(1, &begun)]),
            trace(&[field(3, &log(b"one\ntw"))]),
            trace(&[field(3, &log(b"o\n"))]),
            trace(&[field(1, &failed)]),
        ]);
        assert_eq!(lines, ["[2/2] RUN make", "  one", "  two", "[2/2] RUN make: exit code: 2"]);
        assert_eq!(progress.step().as_deref(), Some("[2/2] RUN make: exit code: 2"));
    }

    #[test]
    fn a_message_that_ends_too_early_is_read_as_far_as_it_goes() {
        for bytes in
            [&b"\x0a\xff"[..], b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0a\x05ab", b"\x0b"]
        {
            assert_eq!(fields(bytes).count(), 0);
        }
    }
}
