//! Lengths of time, sizes and numbers, as the Compose Specification writes them.
//!
//! Each function answers the value, or what is wrong with the text and what to write instead.

use wharf_model::{Cpus, Millis};

use crate::diagnostic::{Complaint, Diagnostic, Key, Report, Span};

/// Why a text is no amount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    problem: String,
    hint: String,
}
impl Fault {
    fn new(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: hint.into() }
    }

    /// Complains about it.
    pub(crate) fn tell<'r>(self, report: &'r mut Report, span: Span, key: &Key<'_>) -> &'r mut Diagnostic {
        report.error(Complaint::InvalidValue, span, key, self.problem).hint(self.hint)
    }
}

const LENGTHS: &str = "write numbers with units, such as `30s` or `1m30s` (us, ms, s, m, h, d, w)";
const SIZES: &str = "write a number with a unit, such as `512m` or `2g` (b, k, m, g, t)";

/// `1h30m`, `1.5s`, `500ms`; the units are `us ms s m h d w`. Fractions of a millisecond are rounded up.
pub(crate) fn duration(text: &str) -> Result<Millis, Fault> {
    Ok(Millis(nanoseconds(text)?.div_ceil(1_000_000)))
}

/// The same, in billionths of a second.
pub(crate) fn nanoseconds(text: &str) -> Result<u64, Fault> {
    let wrong = || Fault::new(format!("`{text}` is not a duration"), LENGTHS);
    let trimmed = text.trim();
    if trimmed == "0" {
        return Ok(0);
    }
    if trimmed.is_empty() {
        return Err(Fault::new("a duration cannot be empty", LENGTHS));
    }
    if trimmed.parse::<f64>().is_ok() && !trimmed.starts_with('-') {
        return Err(Fault::new(
            format!("the duration `{text}` has no unit"),
            format!("write `{trimmed}s` for seconds"),
        ));
    }
    if trimmed.starts_with('-') {
        return Err(Fault::new(format!("a duration cannot be negative, as `{text}` is"), LENGTHS));
    }
    let mut rest = trimmed;
    let mut nanoseconds = 0_f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3_600e9,
            "d" => 86_400e9,
            "w" => 604_800e9,
            _ => return Err(wrong()),
        };
        nanoseconds += number * unit;
        rest = &rest[end..];
    }
    if nanoseconds >= 9e18 {
        return Err(Fault::new(
            format!("the duration `{text}` is too long"),
            "write one of less than 100 years",
        ));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(nanoseconds.round() as u64)
}

/// As Go prints a length of time: `1m30s`, `1h0m0s`, `1.5s`, `250ms`.
pub(crate) fn spell(nanoseconds: u64) -> String {
    let fraction = |number: u64, unit: u64| {
        let (whole, rest) = (number / unit, number % unit);
        let width = unit.ilog10() as usize;
        let text = format!("{whole}.{rest:0width$}");
        if rest == 0 { whole.to_string() } else { text.trim_end_matches('0').to_owned() }
    };
    match nanoseconds {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(nanoseconds, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(nanoseconds, 1_000_000)),
        _ => {
            let minutes = nanoseconds / 60_000_000_000;
            let seconds = fraction(nanoseconds % 60_000_000_000, 1_000_000_000);
            match minutes {
                0 => format!("{seconds}s"),
                1..60 => format!("{minutes}m{seconds}s"),
                _ => format!("{}h{}m{seconds}s", minutes / 60, minutes % 60),
            }
        }
    }
}

/// `512m`, `1.5gb`, `64k`, `1048576`: binary multiples, as Docker reads them.
pub(crate) fn bytes(text: &str) -> Result<u64, Fault> {
    let wrong = || Fault::new(format!("`{text}` is not a size"), SIZES);
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    if trimmed.starts_with('-') {
        return Err(Fault::new(format!("a size cannot be negative, as `{text}` is"), SIZES));
    }
    let number: f64 = trimmed[..end].parse().map_err(|_| wrong())?;
    let unit = trimmed[end..].trim_start().to_ascii_lowercase();
    let letters = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let power = match letters {
        "" if unit == "ib" => return Err(wrong()),
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    let size = number * 1024_f64.powi(power);
    if size >= 9e18 {
        return Err(Fault::new(format!("the size `{text}` is too large"), SIZES));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(size as u64)
}

/// Processor time: `0.5`, `2`.
pub(crate) fn cpus(value: f64) -> Result<Cpus, Fault> {
    if !(0.0..=1e6).contains(&value) {
        return Err(Fault::new(
            format!("`{value}` is not a number of processors"),
            "write for example `0.5` or `2`",
        ));
    }
    let thousandths = (value * 1000.0).round();
    if value > 0.0 && thousandths < 1.0 {
        return Err(Fault::new(format!("`{value}` processors is too little"), "write at least `0.001`"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(Cpus(thousandths as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, expected) in [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("500ms", 500),
            ("1d", 86_400_000),
            ("10us", 1),
        ] {
            assert_eq!(duration(text), Ok(Millis(expected)), "{text}");
        }
        assert_eq!(duration("30").unwrap_err().hint, "write `30s` for seconds");
        for text in ["", "s", "-1s", "1x", "1s2", "1..2s", "99999999999999w"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_spelt_as_go_does() {
        for (text, expected) in [
            ("0s", "0s"),
            ("90s", "1m30s"),
            ("1h", "1h0m0s"),
            ("1w", "168h0m0s"),
            ("1500ms", "1.5s"),
            ("250ms", "250ms"),
            ("1500us", "1.5ms"),
            ("10us", "10µs"),
            ("61s500ms", "1m1.5s"),
        ] {
            assert_eq!(spell(nanoseconds(text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        for (text, expected) in [
            ("512m", 512 << 20),
            ("1.5gb", 3 << 29),
            ("64K", 64 << 10),
            ("10", 10),
            ("2GiB", 2 << 30),
            ("5b", 5),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "m", "-1m", "1x", "1mm", "99999999p"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = (duration(&text), bytes(&text));
        }
        #[test]
        fn whole_seconds_come_back(seconds in 0_u64..1_000_000) {
            prop_assert_eq!(duration(&format!("{seconds}s")), Ok(Millis::from_secs(seconds)));
        }
    }
}
