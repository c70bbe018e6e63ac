//! Reads `.env` files: `KEY=value` lines with comments, quotes, escapes, several lines and variables.
//!
//! Unquoted and double-quoted values are substituted, single-quoted ones are taken as they are. A key without a value is
//! taken from the environment. The raw form has no quotes and no variables: the value is the rest of the line.

use std::collections::{BTreeMap, HashMap};

use crate::interpolate::{Lookup, substitute};

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// With quotes and variables.
    Compose,
    /// As it stands.
    Raw,
}

/// What a file says, in its order; a name may come twice, the last one counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Variables {
    pub(crate) entries: Vec<(String, String)>,
    /// Variables used without a value, with the line.
    pub(crate) unset: Vec<(String, u32)>,
    /// Where the latest value of a name stands among the entries.
    latest: HashMap<String, usize>,
}
impl Variables {
    fn get(&self, name: &str) -> Option<&String> {
        self.latest.get(name).map(|index| &self.entries[*index].1)
    }
    fn add(&mut self, name: &str, value: String) {
        self.latest.insert(name.to_owned(), self.entries.len());
        self.entries.push((name.to_owned(), value));
    }
}

/// Why a file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// A variable is looked up outside first, then in the lines above it, then in what files before this one gave.
pub(crate) fn parse(
    text: &str,
    format: Format,
    outer: Lookup<'_>,
    earlier: &BTreeMap<String, String>,
) -> Result<Variables, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { text, at: 0, outer, earlier, found: Variables::default() };
    match format {
        Format::Compose => reader.compose()?,
        Format::Raw => reader.raw()?,
    }
    Ok(reader.found)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    outer: Lookup<'a>,
    earlier: &'a BTreeMap<String, String>,
    found: Variables,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn value_of(&self, name: &str) -> Option<String> {
        let inner = || self.found.get(name).or_else(|| self.earlier.get(name));
        (self.outer)(name).or_else(|| inner().cloned())
    }

    /// The rest of the line, without its end; steps over it.
    fn line(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest.find('\n').unwrap_or(rest.len());
        self.at += (end + 1).min(rest.len());
        rest[..end].trim_end_matches('\r')
    }

    fn raw(&mut self) -> Result<(), Fault> {
        while !self.rest().is_empty() {
            let start = self.at;
            let line = self.line();
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = match line.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (line, self.value_of(line)),
            };
            if name.is_empty() || name.contains(char::is_whitespace) {
                let message = format!("`{name}` is not a name of a variable");
                return Err(self.fault(start, message, "write `NAME=value`"));
            }
            if let Some(value) = value {
                self.found.add(name, value);
            }
        }
        Ok(())
    }

    fn compose(&mut self) -> Result<(), Fault> {
        loop {
            let rest = self.rest();
            let skipped = rest.len() - rest.trim_start().len();
            self.at += skipped;
            let rest = self.rest();
            if rest.is_empty() {
                return Ok(());
            }
            if rest.starts_with('#') {
                self.line();
                continue;
            }
            self.variable()?;
        }
    }

    fn variable(&mut self) -> Result<(), Fault> {
        let start = self.at;
        if let Some(after) = self.rest().strip_prefix("export")
            && after.starts_with([' ', '\t'])
        {
            self.at += "export".len() + (after.len() - after.trim_start_matches([' ', '\t']).len());
        }
        let rest = self.rest();
        let legal = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']');
        let end = rest.find(|c: char| !legal(c)).unwrap_or(rest.len());
        let name = &rest[..end];
        let after = rest[end..].trim_start_matches([' ', '\t']);
        self.at += rest.len() - after.len();
        if name.is_empty() {
            let found = rest.chars().next().unwrap_or_default();
            let message = format!("a line starts with the name of a variable, not with `{found}`");
            return Err(self.fault(start, message, "write `NAME=value`, or `#` before a comment"));
        }
        let value = match after.chars().next() {
            Some('=' | ':') => {
                self.at += 1;
                Some(self.value(name)?)
            }
            None | Some('\n' | '\r' | '#') => {
                self.line();
                self.value_of(name)
            }
            Some(found) => {
                let message = format!("`{found}` cannot follow the name `{name}`");
                return Err(self.fault(self.at, message, "write `NAME=value`"));
            }
        };
        if let Some(value) = value {
            self.found.add(name, value);
        }
        Ok(())
    }

    /// What follows the equals sign.
    fn value(&mut self, name: &str) -> Result<String, Fault> {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
        match self.rest().chars().next() {
            Some(quote @ ('"' | '\'')) => self.quoted(name, quote),
            _ => {
                let start = self.at;
                let line = self.line();
                let value = without_comment(line).trim();
                self.substituted(value, start)
            }
        }
    }

    fn quoted(&mut self, name: &str, quote: char) -> Result<String, Fault> {
        let start = self.at;
        let body = &self.rest()[1..];
        let mut escaped = false;
        let end = body.char_indices().find_map(|(index, c)| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends.then_some(index)
        });
        let Some(end) = end else {
            let message = format!("the value of `{name}` has no closing `{quote}`");
            return Err(self.fault(start, message, "close the quote, or leave it out"));
        };
        let body = &body[..end];
        self.at += end + 2;
        let after = self.at;
        let trailing = self.line().trim();
        if !trailing.is_empty() && !trailing.starts_with('#') {
            let message = format!("text follows the closing `{quote}` of `{name}`");
            let hint = "end the line there, or put `#` before a comment";
            return Err(self.fault(after, message, hint));
        }
        if quote == '\'' {
            return Ok(body.replace("\\'", "'"));
        }
        self.substituted(&unescape(body), start)
    }

    fn substituted(&mut self, value: &str, at: usize) -> Result<String, Fault> {
        let done = substitute(value, &|name| self.value_of(name));
        match done {
            Ok(done) => {
                // Finding a line takes time; nobody reads so many warnings.
                let shown = self.found.unset.len() < 100 && !done.unset.is_empty();
                let line = if shown { self.position(at).0 } else { 0 };
                self.found.unset.extend(done.unset.into_iter().map(|name| (name, line)));
                Ok(done.text)
            }
            Err(problem) => Err(self.fault(at, problem.to_string(), &problem.hint())),
        }
    }

    fn position(&self, at: usize) -> (u32, u32) {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }

    fn fault(&self, at: usize, message: String, hint: &str) -> Fault {
        let (line, column) = self.position(at);
        Fault { line, column, message, hint: hint.to_owned() }
    }
}

/// A comment begins with `#` after a space; without one, `#` is part of the value.
fn without_comment(line: &str) -> &str {
    line.find(" #").map_or(line, |start| &line[..start])
}

/// What a shell's `$'…'` knows: letters such as `\n`, `\"`, `\\`, and `\0` with up to three octal digits; others stay as
/// they are. `\$` is a dollar sign that begins no variable.
fn unescape(body: &str) -> String {
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(index) = rest.find('\\') {
        out.push_str(&rest[..index]);
        let tail = &rest[index + 1..];
        let mut used = 1;
        match tail.bytes().next() {
            Some(b'a') => out.push('\u{7}'),
            Some(b'b') => out.push('\u{8}'),
            Some(b'f') => out.push('\u{c}'),
            Some(b'n') => out.push('\n'),
            Some(b'r') => out.push('\r'),
            Some(b't') => out.push('\t'),
            Some(b'v') => out.push('\u{b}'),
            Some(b'$') => out.push_str("$$"),
            Some(c @ (b'\\' | b'"')) => out.push(char::from(c)),
            Some(b'0') => match octal(&tail[1..]) {
                Some(c) => {
                    out.push(c);
                    used = 4;
                }
                None => out.push_str("\\0"),
            },
            _ => {
                out.push('\\');
                used = 0;
            }
        }
        rest = &tail[used..];
    }
    out.push_str(rest);
    out
}

/// Three octal digits make a character.
fn octal(digits: &str) -> Option<char> {
    let digits = digits.get(..3).filter(|digits| digits.bytes().all(|byte| matches!(byte, b'0'..=b'7')))?;
    u32::from_str_radix(digits, 8).ok().filter(|number| *number < 256).and_then(char::from_u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        (name == "OUTER").then(|| "outer".to_owned())
    }
    fn read(text: &str) -> Vec<(String, String)> {
        parse(text, Format::Compose, &lookup, &BTreeMap::new()).unwrap().entries
    }

    #[test]
    fn every_form_of_line_is_read() {
        let text = "# comment\n\
            A=1\n\
            export B = two words  # comment\n\
            C='single $OUTER \\' quote'\n\
            D=\"double $OUTER \\\"x\\\" \\$y\\n\" # comment\n\
            E=$OUTER-${A}-${NONE:-d}\n\
            F=\n\
            OUTER\n\
            MISSING\n\
            G=\"several\nlines\"\n\
            H: yaml\n\
            I=a#b\r\n\
            J=#c\n\
            K=x #\n\
            L=\"\\0123 \\' \\q \\a\"\n";
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "single $OUTER ' quote"),
            ("D", "double outer \"x\" $y\n"),
            ("E", "outer-1-d"),
            ("F", ""),
            ("OUTER", "outer"),
            ("G", "several\nlines"),
            ("H", "yaml"),
            ("I", "a#b"),
            ("J", "#c"),
            ("K", "x"),
            ("L", "S \\' \\q \u{7}"),
        ];
        let expected: Vec<_> = expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(read(text), expected);
    }

    #[test]
    fn the_raw_form_takes_everything_as_it_stands() {
        let found =
            parse("A='x' # $OUTER\n# c\n\nOUTER\n", Format::Raw, &lookup, &BTreeMap::new()).unwrap().entries;
        assert_eq!(found, [("A".into(), "'x' # $OUTER".into()), ("OUTER".into(), "outer".to_owned())]);
    }

    #[test]
    fn faults_name_their_line() {
        for (text, line, message) in [
            ("A=1\nB=\"open\n", 2, "the value of `B` has no closing `\"`"),
            ("A=1\n\n=2\n", 3, "a line starts with the name of a variable, not with `=`"),
            ("A B=2\n", 1, "`B` cannot follow the name `A`"),
            ("A=\"x\" y\n", 1, "text follows the closing `\"` of `A`"),
            ("A=${X:?no}\n", 1, "the variable `X` is required: no"),
        ] {
            let fault = parse(text, Format::Compose, &lookup, &BTreeMap::new()).unwrap_err();
            assert_eq!((fault.line, fault.message.as_str()), (line, message));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = parse(&text, Format::Compose, &lookup, &BTreeMap::new());
            let _ = parse(&text, Format::Raw, &lookup, &BTreeMap::new());
        }
        #[test]
        fn file_like_text_does_not_panic(text in "[A-C='\"\\\\$\\{\\} #\n\r:]{0,40}") {
            let _ = parse(&text, Format::Compose, &lookup, &BTreeMap::new());
        }
        #[test]
        fn a_double_quoted_value_comes_back(value in "[^\0]{0,40}") {
            let quoted: String = value.chars().flat_map(|c| match c {
                '\\' => vec!['\\', '\\'],
                '"' => vec!['\\', '"'],
                '$' => vec!['\\', '$'],
                c => vec![c],
            }).collect();
            prop_assert_eq!(read(&format!("K=\"{quoted}\"")), [("K".to_owned(), value)]);
        }
        #[test]
        fn a_single_quoted_value_comes_back(value in "[^\0'\\\\]{0,40}") {
            prop_assert_eq!(read(&format!("K='{value}'\n")), [("K".to_owned(), value)]);
        }
    }
}
