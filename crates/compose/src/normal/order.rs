//! The order of keys in the reference's YAML: numbers in names count as numbers, letters come after other characters.

use std::cmp::Ordering;

pub(super) fn natural(left: &str, right: &str) -> Ordering {
    if left.is_ascii() && right.is_ascii() {
        compare(left.as_bytes(), right.as_bytes(), |byte| char::from(*byte))
    } else {
        let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
        compare(&left, &right, |c| *c)
    }
}

fn compare<T>(left: &[T], right: &[T], character: impl Fn(&T) -> char) -> Ordering {
    let common = left.iter().zip(right).take_while(|(a, b)| character(a) == character(b)).count();
    let (Some(a), Some(b)) = (left.get(common), right.get(common)) else {
        return left.len().cmp(&right.len());
    };
    let (a, b) = (character(a), character(b));
    match (a.is_alphabetic(), b.is_alphabetic()) {
        (true, true) => return a.cmp(&b),
        (false, false) => {}
        (a_is_letter, _) => {
            // A name that goes on with a letter is before one that goes on with another digit.
            let after_digit = common > 0 && character(&left[common - 1]).is_ascii_digit();
            return if a_is_letter == after_digit { Ordering::Less } else { Ordering::Greater };
        }
    }
    let digits = |text: &[T]| text.iter().map(&character).take_while(char::is_ascii_digit).count();
    let mut start = common;
    if a == '0' || b == '0' {
        start -= left[..common].iter().rev().map(&character).take_while(char::is_ascii_digit).count();
    }
    let number = |text: &[T]| {
        let run = text[start..].iter().map(&character).take_while(char::is_ascii_digit);
        run.fold(0_u128, |sum, c| {
            sum.saturating_mul(10).saturating_add(u128::from(c.to_digit(10).unwrap_or_default()))
        })
    };
    number(left)
        .cmp(&number(right))
        .then_with(|| digits(&left[common..]).cmp(&digits(&right[common..])))
        .then_with(|| a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut names = ["web10", "web2", "web", "Web", "a_b", "a-b", "ab", "web2a", "1", "10", "2", "web02"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(
            names,
            ["1", "2", "10", "Web", "a-b", "a_b", "ab", "web", "web2", "web2a", "web02", "web10"]
        );
    }
}
