//! The access log: one line of JSON for each request that is over, and for each connection where requests are not understood.
//!
//! - Whoever answers requests never waits for it: a line is written into a buffer of the worker's own (two locks nobody contends and no
//!   system call), and a task of the process takes the buffers to the file five times a second. A gateway without requests is not woken.
//! - It is bounded: what does not fit into a buffer because the disk does not keep up is counted instead ([`AccessLog::unlogged`]), and
//!   the file is put aside when it is large, of which so many are kept.
//! - Query strings, headers and bodies are not in it: they may be secrets.
//! - Several processes may write to one file at once (an old one finishes what it has): lines stay whole, and whoever finds the file put
//!   aside opens the new one.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    mem,
    net::{IpAddr, SocketAddrV4},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;
use wharf_model::{Endpoint, RouteId};
use wharf_process::{Clock, SystemClock, blocking, clock::Millis};

/// How long a line may be in memory.
const FLUSH: Duration = Duration::from_millis(200);
/// A buffer that is this full is taken to the file at once.
const FULL: usize = 256 << 10;
/// What a worker's buffer holds at most.
const LIMIT: usize = 4 << 20;
/// After the file could not be written to.
const AGAIN: Duration = Duration::from_secs(5);
const MILLISECONDS_PER_SECOND: u64 = 1000;

/// Where the access log is, and how much of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogOptions {
    /// The file.
    pub path: PathBuf,
    /// It is put aside when it has so many bytes.
    pub size: u64,
    /// So many files that were put aside are kept, with `.1`, `.2`, … after their names, the newest first.
    pub kept: u32,
}

impl AccessLogOptions {
    /// At this path, 64 MiB and four that were put aside: 320 MiB at most, about a million requests.
    #[must_use]
    pub const fn at(path: PathBuf) -> Self {
        Self { path, size: 64 << 20, kept: 4 }
    }
}

/// The access log of a gateway process. Clones are the same one.
#[derive(Clone)]
pub struct AccessLog {
    shared: Arc<Shared>,
}

struct Shared {
    /// None: nothing is logged.
    options: Option<AccessLogOptions>,
    clock: SystemClock,
    buffers: Mutex<Vec<Arc<Mutex<Buffer>>>>,
    /// Something is in a buffer that nobody has been told of.
    told: AtomicBool,
    ready: Notify,
    full: Notify,
    unlogged: AtomicU64,
}

/// One worker's way to the log.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    buffer: Arc<Mutex<Buffer>>,
}

/// What one worker has logged.
#[derive(Default)]
struct Buffer {
    lines: Vec<u8>,
    /// The second that was last written, and how.
    second: Option<(u64, String)>,
}

/// What a line says of a route; made once for each.
#[derive(Debug, Clone, Default)]
pub(crate) struct RouteLabel(Box<str>);

impl RouteLabel {
    pub(crate) fn of(route: &RouteId) -> Self {
        let mut text = Vec::new();
        member(&mut text, "route", &route.to_string());
        Self(String::from_utf8_lossy(&text).into())
    }
}

/// What a line says of an endpoint; made once for each.
#[derive(Debug, Clone, Default)]
pub(crate) struct EndpointLabel(Box<str>);

impl EndpointLabel {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        let Endpoint { task, address, .. } = endpoint;
        Self::new(&task.to_string(), *address)
    }

    fn new(task: &str, address: SocketAddrV4) -> Self {
        let mut text = Vec::new();
        member(&mut text, "task", task);
        member(&mut text, "endpoint", &address.to_string());
        Self(String::from_utf8_lossy(&text).into())
    }
}

/// A request that is over, or a connection where requests are not understood: those fields are empty then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'r> {
    /// None if no route is meant.
    pub(crate) route: Option<&'r RouteLabel>,
    /// Who answered, or was to.
    pub(crate) endpoint: Option<&'r EndpointLabel>,
    /// `http/1.1`, `http/2`, `tcp`, …
    pub(crate) protocol: &'static str,
    pub(crate) client: IpAddr,
    pub(crate) host: &'r str,
    pub(crate) method: &'r str,
    /// Without the query.
    pub(crate) path: &'r str,
    /// What the client was told; 0 if nothing.
    pub(crate) status: u16,
    /// Bytes of the body from the client.
    pub(crate) received: u64,
    /// Bytes of the body to the client.
    pub(crate) sent: u64,
    /// Until the head of the answer was there.
    pub(crate) head: Option<Duration>,
    /// Until all was over.
    pub(crate) took: Duration,
    /// Endpoints that were tried.
    pub(crate) attempts: u8,
    /// What the task is told as `x-request-id`.
    pub(crate) request_id: &'r str,
    /// Why it was refused, tried again or cut; empty if nothing was unusual.
    pub(crate) why: &'r str,
}

impl AccessLog {
    /// A log that [`AccessLog::run`] writes; without options nothing is logged, and a line costs nothing.
    #[must_use]
    pub fn new(options: Option<AccessLogOptions>) -> Self {
        let (buffers, told, ready, full, unlogged) = Default::default();
        let clock = SystemClock::new();
        Self { shared: Arc::new(Shared { options, clock, buffers, told, ready, full, unlogged }) }
    }

    /// A way to the log for one thread.
    pub(crate) fn writer(&self) -> Writer {
        let buffer = Arc::<Mutex<Buffer>>::default();
        self.shared.buffers.lock().push(Arc::clone(&buffer));
        Writer { shared: Arc::clone(&self.shared), buffer }
    }

    /// Lines that were not written, because they came faster than the disk took them, or it took none.
    #[must_use]
    pub fn unlogged(&self) -> u64 {
        self.shared.unlogged.load(Ordering::Relaxed)
    }

    /// Writes what is logged until `stop`, and then what is left.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(options) = self.shared.options.clone() else { return };
        let mut log = LogFile { options, open: None, spare: Vec::new(), complained: false };
        loop {
            let is_last = stop.is_cancelled();
            tokio::select! {
                // Cancel-safe all: they only wait, and a notification that is not taken is kept.
                () = self.shared.ready.notified() => {}
                () = stop.cancelled() => {}
            }
            tokio::select! {
                () = sleep(FLUSH) => {}
                () = self.shared.full.notified() => {}
                () = stop.cancelled() => {}
            }
            let shared = Arc::clone(&self.shared);
            let failed;
            (log, failed) = blocking(move || log.take_all(&shared)).await;
            if is_last {
                return;
            }
            if failed {
                // Cancel-safe: it only waits.
                let _ = stop.run_until_cancelled(sleep(AGAIN)).await;
            }
        }
    }
}

impl Writer {
    /// Whether anything is logged.
    pub(crate) fn is_on(&self) -> bool {
        self.shared.options.is_some()
    }

    /// Logs a line. Never waits for a disk.
    pub(crate) fn log(&self, line: &Line<'_>) {
        if self.shared.options.is_none() {
            return;
        }
        let now = self.shared.clock.now();
        let mut buffer = self.buffer.lock();
        if buffer.lines.len() > LIMIT {
            drop(buffer);
            self.shared.unlogged.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = buffer.lines.len();
        buffer.time(now);
        line.write(&mut buffer.lines);
        let is_full = before < FULL && buffer.lines.len() >= FULL;
        drop(buffer);
        if is_full {
            self.shared.full.notify_one();
        }
        // One store and one wake-up for each time the buffers are taken, however many lines there are.
        if !self.shared.told.load(Ordering::Relaxed) && !self.shared.told.swap(true, Ordering::AcqRel) {
            self.shared.ready.notify_one();
        }
    }
}

impl Buffer {
    /// `{"time":"2026-11-22T01:02:03.456Z"`
    fn time(&mut self, now: Millis) {
        let (second, millisecond) = (now.0 / MILLISECONDS_PER_SECOND, now.0 % MILLISECONDS_PER_SECOND);
        let known = self.second.take().filter(|(known, _)| *known == second);
        let (_, date) = self.second.insert(known.unwrap_or_else(|| (second, rfc3339(second))));
        let text = &mut self.lines;
        text.extend_from_slice(b"{\"time\":\"");
        text.extend_from_slice(date.as_bytes());
        text.push(b'.');
        text.extend(
            [100, 10, 1].map(|unit| b"0123456789"[usize::try_from(millisecond / unit % 10).unwrap_or(0)]),
        );
        text.extend_from_slice(b"Z\"");
    }
}

impl Line<'_> {
    /// What comes after the time, up to the end of the line.
    fn write(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(b",\"client\":\"");
        address(text, self.client);
        text.push(b'"');
        member(text, "protocol", self.protocol);
        for (name, value) in [("method", self.method), ("host", self.host), ("path", self.path)] {
            if !value.is_empty() {
                member(text, name, value);
            }
        }
        number(text, "status", u64::from(self.status));
        number(text, "received", self.received);
        number(text, "sent", self.sent);
        if let Some(head) = self.head {
            number(text, "head_us", micros(head));
        }
        number(text, "took_us", micros(self.took));
        if let Some(RouteLabel(label)) = self.route {
            text.extend_from_slice(label.as_bytes());
        }
        if let Some(EndpointLabel(label)) = self.endpoint {
            text.extend_from_slice(label.as_bytes());
        }
        if self.attempts > 1 {
            number(text, "attempts", u64::from(self.attempts));
        }
        for (name, value) in [("request_id", self.request_id), ("why", self.why)] {
            if !value.is_empty() {
                member(text, name, value);
            }
        }
        text.extend_from_slice(b"}\n");
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The date and time of a second since 1970, in UTC, without an end: a fraction may follow.
fn rfc3339(second: u64) -> String {
    let (days, rest) = (second / 86_400, second % 86_400);
    // Days since 0000-03-01, in eras of 400 years (H. Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let mut text = String::with_capacity(20);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    text
}

/// `,"name":value`
fn number(text: &mut Vec<u8>, name: &str, value: u64) {
    text.extend_from_slice(b",\"");
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\":");
    digits(text, value);
}

fn digits(text: &mut Vec<u8>, mut value: u64) {
    let mut all = [0; 20];
    let mut at = all.len();
    loop {
        at -= 1;
        all[at] = b"0123456789"[usize::try_from(value % 10).unwrap_or(0)];
        value /= 10;
        if value == 0 {
            break;
        }
    }
    text.extend_from_slice(&all[at..]);
}

fn address(text: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (place, byte) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    text.push(b'.');
                }
                digits(text, u64::from(byte));
            }
        }
        IpAddr::V6(address) => {
            let _ = io::Write::write_fmt(text, format_args!("{address}"));
        }
    }
}

/// `,"name":"value"`, whatever is in the value.
fn member(text: &mut Vec<u8>, name: &str, value: &str) {
    text.extend_from_slice(b",\"");
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\":\"");
    let plain = |byte: &u8| *byte >= b' ' && *byte != b'"' && *byte != b'\\' && *byte != 0x7f;
    if value.as_bytes().iter().all(plain) {
        text.extend_from_slice(value.as_bytes());
    } else {
        for byte in value.bytes() {
            if plain(&byte) {
                text.push(byte);
            } else {
                let _ = io::Write::write_fmt(text, format_args!("\\u{byte:04x}"));
            }
        }
    }
    text.push(b'"');
}

/// Where lines are written to.
struct LogFile {
    options: AccessLogOptions,
    open: Option<File>,
    /// A buffer that is given to a worker in place of its own.
    spare: Vec<u8>,
    /// It was said that it cannot be written to.
    complained: bool,
}

impl LogFile {
    /// Writes what all workers have; whether that failed, and is lost.
    fn take_all(mut self, shared: &Shared) -> (Self, bool) {
        // Before the buffers: what comes after this is told again.
        shared.told.store(false, Ordering::Release);
        let mut failed = false;
        let buffers = shared.buffers.lock().clone();
        for buffer in buffers {
            let lines = mem::replace(&mut buffer.lock().lines, mem::take(&mut self.spare));
            if !lines.is_empty()
                && let Err(error) = self.append(&lines)
            {
                failed = true;
                let lost = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
                shared.unlogged.fetch_add(lost, Ordering::Relaxed);
                self.open = None;
                if !mem::replace(&mut self.complained, true) {
                    let path = self.options.path.display();
                    tracing::warn!(%error, %path, "the access log cannot be written");
                }
            }
            // Its room is used again; what a rush needed is given back.
            if lines.capacity() <= 2 * FULL {
                self.spare = lines;
                self.spare.clear();
            }
        }
        // Those whose worker is gone.
        shared
            .buffers
            .lock()
            .retain(|buffer| Arc::strong_count(buffer) > 1 || !buffer.lock().lines.is_empty());
        if !failed {
            self.complained = false;
        }
        (self, failed)
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let path = &self.options.path;
        let is_there = |file: &File| {
            let (ours, theirs) = (file.metadata().ok()?, fs::metadata(path).ok()?);
            Some((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
        };
        // Another process may have put it aside, or a person.
        let file = match self.open.take().filter(|file| is_there(file) == Some(true)) {
            Some(file) => file,
            None => {
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                File::options().append(true).create(true).open(path)?
            }
        };
        // In one go: what two processes write stays apart.
        (&file).write_all(lines)?;
        if file.metadata()?.len() >= self.options.size {
            put_aside(path, self.options.kept)?;
        } else {
            self.open = Some(file);
        }
        Ok(())
    }
}

/// Renames the file to `.1`, what was `.1` to `.2`, and so on up to `kept`.
fn put_aside(path: &Path, kept: u32) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    if kept == 0 {
        return fs::remove_file(path);
    }
    for number in (1..kept).rev() {
        match fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::rename(path, numbered(1))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn line<'r>(path: &'r str, endpoint: &'r EndpointLabel) -> Line<'r> {
        Line {
            route: None,
            endpoint: Some(endpoint),
            protocol: "http/1.1",
            client: "192.0.2.7".parse().unwrap(),
            host: "shop.example.com",
            method: "GET",
            path,
            status: 200,
            received: 0,
            sent: 1234,
            head: Some(Duration::from_micros(1500)),
            took: Duration::from_millis(2),
            attempts: 1,
            request_id: "",
            why: "",
        }
    }

    fn endpoint() -> EndpointLabel {
        EndpointLabel::new("task_1", "10.0.0.1:80".parse().unwrap())
    }

    /// Has all written, and reads it.
    async fn written(log: &AccessLog, path: &Path) -> Vec<Value> {
        let stop = CancellationToken::new();
        stop.cancel();
        log.run(stop).await;
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn seconds_are_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(rfc3339(1_795_309_323), "2026-11-22T01:02:03");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00");
    }

    #[tokio::test]
    async fn a_line_is_json_whatever_the_client_sends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/access.log");
        let log = AccessLog::new(Some(AccessLogOptions::at(path.clone())));
        let (writer, endpoint) = (log.writer(), endpoint());
        let nasty = "/\"},{\"admin\":\"\\\n\u{7f}\u{0}é";
        writer.log(&line(nasty, &endpoint));
        let why =
            Line { why: "rate_limited", attempts: 2, head: None, endpoint: None, ..line("/", &endpoint) };
        writer.log(&why);
        let lines = written(&log, &path).await;
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["path"], nasty);
        assert_eq!(lines[0]["task"], "task_1");
        assert_eq!(lines[0]["endpoint"], "10.0.0.1:80");
        assert_eq!(lines[0]["client"], "192.0.2.7");
        assert_eq!((&lines[0]["status"], &lines[0]["head_us"]), (&Value::from(200), &Value::from(1500)));
        assert_eq!(lines[0]["took_us"], 2000);
        assert!(lines[0].get("attempts").is_none() && lines[0].get("why").is_none());
        assert_eq!((&lines[1]["why"], &lines[1]["attempts"]), (&"rate_limited".into(), &Value::from(2)));
        assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
    }

    #[tokio::test]
    async fn files_are_put_aside_and_only_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let options = AccessLogOptions { size: 1, kept: 2, ..AccessLogOptions::at(path.clone()) };
        let log = AccessLog::new(Some(options));
        let (writer, endpoint) = (log.writer(), endpoint());
        for number in 0..5 {
            writer.log(&line(&format!("/{number}"), &endpoint));
            assert_eq!(written(&log, &path).await.len(), 0, "it was large enough to be put aside");
        }
        let mut kept: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        kept.sort();
        assert_eq!(kept, ["access.log.1", "access.log.2"]);
        let newest = fs::read_to_string(folder.path().join("access.log.1")).unwrap();
        assert!(newest.contains("\"/4\""), "{newest}");
    }

    #[tokio::test]
    async fn what_does_not_fit_is_counted_and_nobody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let log = AccessLog::new(Some(AccessLogOptions::at(path.clone())));
        let (writer, endpoint) = (log.writer(), endpoint());
        let long = format!("/{}", "x".repeat(1 << 20));
        for _ in 0..10 {
            writer.log(&line(&long, &endpoint));
        }
        let lines = written(&log, &path).await.len() as u64;
        assert!((4..10).contains(&lines), "{lines}");
        assert_eq!(log.unlogged(), 10 - lines);
        // No folder can be made where a file is.
        let log = AccessLog::new(Some(AccessLogOptions::at(path.join("access.log"))));
        let writer = log.writer();
        writer.log(&line("/", &endpoint));
        written(&log, &path.join("access.log")).await;
        assert_eq!(log.unlogged(), 1, "lost, and said");
    }

    #[tokio::test]
    async fn the_log_is_written_while_requests_come_and_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let log = AccessLog::new(Some(AccessLogOptions::at(path.clone())));
        let (writer, endpoint, stop) = (log.writer(), endpoint(), CancellationToken::new());
        let count = || fs::read_to_string(&path).unwrap_or_default().lines().count();
        let asking = async {
            writer.log(&line("/1", &endpoint));
            while count() < 1 {
                tokio::task::yield_now().await;
            }
            writer.log(&line("/2", &endpoint));
            stop.cancel();
        };
        tokio::join!(log.run(stop.clone()), asking);
        assert_eq!(count(), 2);
    }
}
