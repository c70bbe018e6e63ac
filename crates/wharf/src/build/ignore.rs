//! `.dockerignore`: which files of a folder are no part of a build's context.
//!
//! Patterns begin at the folder, whatever they look like; what lies under an ignored folder is ignored; the last pattern that fits
//! decides, and `!` takes back.

/// The patterns of a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    segments: Vec<Segment>,
    takes_back: bool,
}

#[derive(Debug, Clone)]
enum Segment {
    /// `**`: any number of folders, none among them.
    Folders,
    /// A name with `*`, `?` and `[a-z]`.
    Name(Vec<char>),
}

impl Ignore {
    /// Reads patterns, one in each line.
    pub(crate) fn parse(text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { rules: text.lines().filter_map(Rule::parse).collect() }
    }

    /// Whether the file or folder of this path, relative to the folder, is ignored.
    pub(crate) fn ignores(&self, path: &str) -> bool {
        let components: Vec<Vec<char>> = path.split('/').map(|name| name.chars().collect()).collect();
        let mut ignored = false;
        for rule in &self.rules {
            // One that would change nothing need not be looked at.
            if rule.takes_back == ignored && (1..=components.len()).any(|end| rule.fits(&components[..end])) {
                ignored = !rule.takes_back;
            }
        }
        ignored
    }

    /// Whether something under an ignored folder may be taken back.
    pub(crate) fn takes_back(&self) -> bool {
        self.rules.iter().any(|rule| rule.takes_back)
    }
}

impl Rule {
    fn parse(line: &str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let line = line.trim();
        let (takes_back, pattern) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        let mut segments = Vec::new();
        for name in pattern.split('/') {
            match name {
                "" | "." => {}
                ".." => drop(segments.pop()),
                "**" => segments.push(Segment::Folders),
                // `**.log` is a name in any folder.
                name if name.starts_with("**") => {
                    segments.push(Segment::Folders);
                    segments
                        .push(Segment::Name(format!("*{}", name.trim_start_matches('*')).chars().collect()));
                }
                name => segments.push(Segment::Name(name.chars().collect())),
            }
        }
        (!segments.is_empty()).then_some(Self { segments, takes_back })
    }

    fn fits(&self, path: &[Vec<char>]) -> bool {
        // reached[i]: the segments so far fit the first i names of the path.
        let mut reached = vec![false; path.len() + 1];
        reached[0] = true;
        for segment in &self.segments {
            let mut next = vec![false; path.len() + 1];
            match segment {
                Segment::Folders => {
                    let first = reached.iter().position(|reached| *reached).unwrap_or(reached.len());
                    next[first..].fill(true);
                }
                Segment::Name(pattern) => {
                    for (at, name) in path.iter().enumerate() {
                        next[at + 1] = reached[at] && fits_name(pattern, name);
                    }
                }
            }
            reached = next;
        }
        reached[path.len()]
    }
}

/// Whether a name fits a pattern. Looks back to the last star only, so it takes no longer than pattern times name.
fn fits_name(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(_) if n < name.len() => fits_one(&pattern[p..], name[n]),
            Some(_) => None,
            None if n == name.len() => return true,
            None => None,
        };
        match (step, star) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((after, from))) if from < name.len() => {
                star = Some((after, from + 1));
                p = after;
                n = from + 1;
            }
            (None, _) => return false,
        }
    }
}

/// How many signs of the pattern stand for this sign of a name, if they fit it.
fn fits_one(pattern: &[char], sign: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == sign).then_some(2),
        ['[', rest @ ..] => {
            let (negated, rest, before) = match rest {
                ['^' | '!', rest @ ..] => (true, rest, 2),
                rest => (false, rest, 1),
            };
            let end = rest.iter().skip(1).position(|c| *c == ']')? + 1;
            let (mut at, mut within) = (0, false);
            while at < end {
                if at + 2 < end && rest[at + 1] == '-' {
                    within |= (rest[at]..=rest[at + 2]).contains(&sign);
                    at += 3;
                } else {
                    within |= rest[at] == sign;
                    at += 1;
                }
            }
            (within != negated).then_some(before + end + 1)
        }
        [plain, ..] => (*plain == sign).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored<'a>(patterns: &str, paths: &[&'a str]) -> Vec<&'a str> {
        let ignore = Ignore::parse(patterns);
        paths.iter().copied().filter(|path| ignore.ignores(path)).collect()
    }

    #[test]
    fn patterns_begin_at_the_folder_and_reach_what_is_under_them() {
        let paths =
            ["node_modules/a/b", "web/node_modules/a", "a.log", "logs/a.log", "logs/deep/b.log", "src/main"];
        assert_eq!(ignored("node_modules", &paths), ["node_modules/a/b"]);
        assert_eq!(ignored("/node_modules/", &paths), ["node_modules/a/b"]);
        assert_eq!(ignored("**/node_modules", &paths), ["node_modules/a/b", "web/node_modules/a"]);
        assert_eq!(ignored("*.log", &paths), ["a.log"]);
        assert_eq!(ignored("**/*.log", &paths), ["a.log", "logs/a.log", "logs/deep/b.log"]);
        assert_eq!(ignored("**.log", &paths), ["a.log", "logs/a.log", "logs/deep/b.log"]);
        assert_eq!(ignored("*/*.log", &paths), ["logs/a.log"]);
        assert_eq!(ignored("logs/**", &paths), ["logs/a.log", "logs/deep/b.log"]);
        assert_eq!(ignored("./src/../logs", &paths), ["logs/a.log", "logs/deep/b.log"]);
        assert_eq!(ignored("# a.log\n\n   \n", &paths), Vec::<&str>::new());
    }

    #[test]
    fn the_last_pattern_that_fits_decides() {
        let paths = ["README.md", "README-secret.md", "docs/a.md"];
        assert_eq!(ignored("*.md\n!README*.md\nREADME-secret.md", &paths), ["README-secret.md"]);
        assert_eq!(ignored("*\n!docs\n", &paths), ["README.md", "README-secret.md"]);
        assert_eq!(ignored("docs\n!docs/a.md", &paths), Vec::<&str>::new());
        assert!(Ignore::parse("docs\n!docs/a.md").takes_back());
    }

    #[test]
    fn names_may_have_signs_of_all_kinds() {
        for (pattern, name, fits) in [
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcd", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[^a-c]x", "dx", true),
            ("[]]x", "]x", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("[a", "[a", false),
            ("*", "", true),
            ("ä?", "äö", true),
        ] {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            assert_eq!(fits_name(&chars(pattern), &chars(name)), fits, "{pattern} {name}");
        }
    }
}
