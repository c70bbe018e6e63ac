//! What of a Dockerfile decides how it is built: whether it needs BuildKit, and where further contexts come in.

use std::collections::BTreeMap;

/// What only BuildKit has among what a Dockerfile uses, in words; `None` if the classic builder will do.
pub(crate) fn needs_buildkit(text: &str) -> Option<String> {
    instructions(text).find_map(|(_, line)| {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        let rest = rest.trim_start();
        let word = word.to_ascii_uppercase();
        let flags: &[&str] = match word.as_str() {
            "RUN" => &["--mount", "--network", "--security", "--device"],
            "COPY" => &["--link", "--chmod", "--parents", "--exclude"],
            "ADD" => &["--link", "--chmod", "--checksum", "--keep-git-dir", "--exclude"],
            _ => &[],
        };
        let used = rest.split_whitespace().take_while(|part| part.starts_with("--"));
        let flag = used
            .into_iter()
            .find_map(|part| flags.iter().find(|flag| part.split('=').next() == Some(**flag)));
        if let Some(flag) = flag {
            return Some(format!("`{word} {flag}`"));
        }
        if matches!(word.as_str(), "RUN" | "COPY" | "ADD") && has_heredoc(rest) {
            return Some(format!("a heredoc (`{word} <<…`)"));
        }
        let platform = [
            "TARGETPLATFORM",
            "TARGETOS",
            "TARGETARCH",
            "TARGETVARIANT",
            "BUILDPLATFORM",
            "BUILDOS",
            "BUILDARCH",
        ];
        let named = platform.iter().find(|name| match word.as_str() {
            "ARG" => rest.split('=').next().map(str::trim) == Some(**name),
            "FROM" => rest.contains(**name),
            _ => false,
        });
        named.map(|name| format!("the builder's own argument `{name}`"))
    })
}

/// `<<EOF`, `<<-"EOF"`, and not `<<<` or a shift.
fn has_heredoc(text: &str) -> bool {
    text.match_indices("<<").any(|(at, _)| {
        let after = text[at + 2..].trim_start_matches('-').trim_start_matches(['"', '\'']);
        !text[..at].ends_with('<') && after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    })
}

/// The Dockerfile with a stage for each further context, so that `FROM NAME` and `--from=NAME` find it: an image by reference.
/// Stages that are named by number keep their meaning.
pub(crate) fn with_contexts(text: &str, images: &BTreeMap<String, String>) -> String {
    if images.is_empty() {
        return text.to_owned();
    }
    // Arguments before the first stage stay before it.
    let first = instructions(text).find(|(_, line)| is_from(line)).map_or(0, |(at, _)| at);
    let mut out = String::with_capacity(text.len() + 64 * images.len());
    out.push_str(&text[..first]);
    for (name, image) in images {
        out.push_str(&format!("FROM {image} AS {name}\n"));
    }
    let rest = &text[first..];
    let mut done = 0;
    for (at, _) in rest.match_indices("--from=") {
        let number = at + "--from=".len();
        let digits = rest[number..].bytes().take_while(u8::is_ascii_digit).count();
        let ends = rest[number + digits..].starts_with(|c: char| c.is_whitespace() || c == ',');
        if let Ok(stage) = rest[number..number + digits].parse::<usize>()
            && ends
        {
            out.push_str(&rest[done..number]);
            out.push_str(&(stage + images.len()).to_string());
            done = number + digits;
        }
    }
    out.push_str(&rest[done..]);
    out
}

fn is_from(line: &str) -> bool {
    line.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("FROM"))
}

/// Instructions with where they begin, continued lines joined; comments and the bodies of heredocs are looked over.
fn instructions(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    let escape = text
        .lines()
        .take_while(|line| line.trim_start().starts_with('#'))
        .find_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix("escape=")?.trim().chars().next())
        .unwrap_or('\\');
    let mut at = 0;
    let mut lines = text.split_inclusive('\n');
    std::iter::from_fn(move || {
        let mut whole = None::<(usize, String)>;
        loop {
            let Some(raw) = lines.next() else { return whole };
            let start = at;
            at += raw.len();
            let line = raw.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (_, joined) = whole.get_or_insert_with(|| (start, String::new()));
            match line.strip_suffix(escape) {
                Some(part) => joined.push_str(&format!("{part} ")),
                None => {
                    joined.push_str(line);
                    return whole;
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_buildkit_has_is_found() {
        for (text, needs) in [
            ("FROM a\nRUN --mount=type=cache,target=/x make\n", Some("`RUN --mount`")),
            ("FROM a\nrun --network=none make\n", Some("`RUN --network`")),
            ("FROM a\nCOPY --from=b --chmod=755 x /x\n", Some("`COPY --chmod`")),
            ("FROM a\nRUN <<EOF\nmake\nEOF\n", Some("a heredoc (`RUN <<…`)")),
            ("FROM a\nCOPY <<-\"END\" /x\nEND\n", Some("a heredoc (`COPY <<…`)")),
            ("FROM a\nARG TARGETARCH\n", Some("the builder's own argument `TARGETARCH`")),
            ("FROM --platform=$BUILDPLATFORM a\n", Some("the builder's own argument `BUILDPLATFORM`")),
            ("FROM a\nRUN make && \\\n    # with --mount\n    echo --mount=x\n", None),
            ("FROM a\nRUN cat <<<word && echo $((1<<2))\n", None),
            ("# RUN --mount=x\nFROM a\nCOPY --from=b --chown=1 x y\n", None),
        ] {
            assert_eq!(needs_buildkit(text).as_deref(), needs, "{text}");
        }
    }

    #[test]
    fn further_contexts_become_stages_before_the_first() {
        let text = "# syntax\nARG V=1\nFROM a:$V AS one\nCOPY --from=docs /x /x\nFROM b\nCOPY --from=0 /x /y\nRUN --mount=from=0 x --from=1a\n";
        let images = [("docs", "ctx:1"), ("base", "alpine:3")]
            .map(|(name, image)| (name.to_owned(), image.to_owned()));
        assert_eq!(
            with_contexts(text, &images.into()),
            "# syntax\nARG V=1\nFROM alpine:3 AS base\nFROM ctx:1 AS docs\nFROM a:$V AS one\nCOPY --from=docs /x /x\nFROM b\n\
             COPY --from=2 /x /y\nRUN --mount=from=0 x --from=1a\n"
        );
        assert_eq!(with_contexts(text, &BTreeMap::new()), text);
    }
}
