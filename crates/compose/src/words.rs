//! Splits a command line into words as a shell does, without running one.
//!
//! Quotes and backslashes work; variables were substituted before; nothing else has a meaning.

/// A command line that cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unclosed {
    #[error("a double quote is not closed")]
    Double,
    #[error("a single quote is not closed")]
    Single,
    #[error("it ends in a backslash")]
    Backslash,
}

pub(crate) fn split(text: &str) -> Result<Vec<String>, Unclosed> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\\' => match characters.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err(Unclosed::Backslash),
            },
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err(Unclosed::Single),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some('"') => break,
                        Some('\\') => match characters.next() {
                            Some('\n') => {}
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err(Unclosed::Double),
                        },
                        Some(c) => word.push(c),
                        None => return Err(Unclosed::Double),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// The first word that only a shell understands.
pub(crate) fn shell_operator(words: &[String]) -> Option<&str> {
    const OPERATORS: [&str; 9] = ["&&", "||", "|", ";", "&", ">", ">>", "<", "2>&1"];
    words.iter().map(String::as_str).find(|word| OPERATORS.contains(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_those_of_a_shell() {
        for (text, expected) in [
            ("a b  c", vec!["a", "b", "c"]),
            ("a 'b c' \"d e\"", vec!["a", "b c", "d e"]),
            ("a\\ b ''", vec!["a b", ""]),
            ("sh -c \"echo \\\"x\\\" 'y'\"", vec!["sh", "-c", "echo \"x\" 'y'"]),
            ("a\n  b", vec!["a", "b"]),
            ("\"a\\nb\"", vec!["a\\nb"]),
            ("", vec![]),
        ] {
            assert_eq!(split(text).unwrap(), expected, "{text}");
        }
        assert_eq!(split("a 'b"), Err(Unclosed::Single));
        assert_eq!(split("a \"b"), Err(Unclosed::Double));
        assert_eq!(split("a \\"), Err(Unclosed::Backslash));
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in proptest::collection::vec("[^']{0,12}", 0..6)) {
            let text: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
            prop_assert_eq!(split(&text.join(" ")).unwrap(), words);
        }
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = split(&text);
        }
    }
}
