//! Where the log goes and what a line of it looks like: stderr, as text or as JSON.

use std::{
    io::{self, IsTerminal},
    str::FromStr,
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt};

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people: one line per entry, coloured on a terminal.
    #[default]
    Text,
    /// For machines: one JSON object per line, with the fields of the entry and of its spans.
    Json,
}

impl FromStr for Format {
    type Err = LoggingError;

    fn from_str(text: &str) -> Result<Self, LoggingError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LoggingError::UnknownFormat(other.to_owned())),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The format has no such name.
    #[error("unknown log format `{0}`: write `text` or `json`")]
    UnknownFormat(String),
    /// The filter cannot be read.
    #[error("cannot read the log filter `{filter}`: write for example `info` or `warn,wharf_agent=debug`")]
    BadFilter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else set up logging in this process.
    #[error("logging is already set up in this process")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends the log of the whole process to stderr. Called once, by `main`.
///
/// `filter` is `level` or a list of `target=level` with commas between them.
///
/// # Errors
/// If the filter cannot be read, or logging was set up before.
pub fn init(format: Format, filter: &str) -> Result<(), LoggingError> {
    let colour = io::stderr().is_terminal();
    subscriber(format, filter, colour, io::stderr)?.try_init().map_err(LoggingError::AlreadySet)
}

fn subscriber<W>(
    format: Format,
    filter: &str,
    colour: bool,
    writer: W,
) -> Result<tracing::Dispatch, LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter)
        .map_err(|source| LoggingError::BadFilter { filter: filter.to_owned(), source })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(match format {
        Format::Text => lines.with_ansi(colour).finish().into(),
        Format::Json => lines.json().flatten_event(true).finish().into(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, filter: &str) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let log = subscriber(format, filter, false, move || writer.clone()).unwrap();
        tracing::dispatcher::with_default(&log, || {
            let _entered = tracing::info_span!("pass", service = "web").entered();
            tracing::info!(task = "web.1", "task moved");
            tracing::debug!("small talk");
        });
        let bytes = captured.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_carry_the_fields_of_the_entry_and_its_span() {
        let lines = logged(Format::Json, "info");
        assert_eq!(lines.lines().count(), 1, "{lines}");
        for part in [r#""message":"task moved""#, r#""task":"web.1""#, r#""service":"web""#] {
            assert!(lines.contains(part), "{part} in {lines}");
        }
    }

    #[test]
    fn text_has_no_colour_codes_where_there_is_no_terminal() {
        let lines = logged(Format::Text, "debug");
        assert_eq!(lines.lines().count(), 2, "{lines}");
        assert!(lines.contains("task moved task=\"web.1\"") && !lines.contains('\u{1b}'), "{lines}");
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_named() {
        let error = subscriber(Format::Text, "info,=%%", false, io::sink).unwrap_err();
        assert!(error.to_string().contains("`info,=%%`"), "{error}");
    }

    #[test]
    fn formats_are_read_by_name() {
        assert_eq!("json".parse::<Format>().unwrap(), Format::Json);
        let error = "xml".parse::<Format>().unwrap_err();
        assert_eq!(error.to_string(), "unknown log format `xml`: write `text` or `json`");
    }
}
