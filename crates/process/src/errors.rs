//! Prints an error and its causes as one sentence, the same way in logs, the CLI and the API.
//!
//! A cause whose text the sentence already ends with is left out, so an error that repeats its
//! source in its own message still reads once.

use std::error::Error;

/// Joins an error and all its causes with `: `, saying nothing twice.
#[must_use]
pub fn chain(error: &(dyn Error + '_)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !says(&text, &next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Whether `text` already ends with `next` as a part of its own, not in the middle of a word.
fn says(text: &str, next: &str) -> bool {
    text.strip_suffix(next)
        .is_some_and(|before| next.is_empty() || !before.ends_with(|last: char| last.is_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    fn links(texts: &[&'static str]) -> Link {
        let (text, rest) = texts.split_first().expect("at least one text");
        let source = (!rest.is_empty()).then(|| Box::new(links(rest)));
        Link { text, source }
    }

    #[test]
    fn causes_are_joined_in_order() {
        let error = links(&["cannot start the server", "cannot open the store", "permission denied"]);
        assert_eq!(chain(&error), "cannot start the server: cannot open the store: permission denied");
    }

    #[test]
    fn a_cause_that_was_already_told_is_not_told_again() {
        let error = links(&["cannot connect: refused", "refused", "os error 111"]);
        assert_eq!(chain(&error), "cannot connect: refused: os error 111");
    }

    #[test]
    fn the_same_letters_inside_a_word_are_not_the_same_text() {
        assert_eq!(chain(&links(&["unused", "used"])), "unused: used");
    }
}
