//! What the loader takes for files that are made to hurt it: each is refused at its place, or read, within a bound of
//! memory and of time. Run with `--nocapture` to see what each takes.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it measures")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use wharf_compose::{Loaded, Projected, Request, load, project};

/// Counts the bytes that each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST_HELD: Cell<usize> = const { Cell::new(0) };
}

fn hold(more: usize, less: usize) {
    // A thread that is ending has nothing to count with, and nothing to count.
    let _ = HELD.try_with(|held| {
        held.set((held.get() + more).saturating_sub(less));
        MOST_HELD.try_with(|most| most.set(most.get().max(held.get())))
    });
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait; this one hands everything on")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hold(layout.size(), 0);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(0, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        hold(size, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MEGABYTE: usize = 1 << 20;
/// What a load may hold beyond the files it is given.
const MOST_MEMORY: usize = 300 * MEGABYTE;
/// Many times what an unoptimised build takes, and far from what a loop or a square takes. Time of the processor: what else
/// the machine does is not counted.
const MOST_TIME: Duration = Duration::from_secs(20);

/// What this thread has taken of a processor.
fn time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

fn within_bounds<T>(what: &str, act: impl FnOnce() -> T) -> T {
    HELD.set(0);
    MOST_HELD.set(0);
    let begun = time();
    let answer = act();
    let (time, memory) = (time() - begun, MOST_HELD.get());
    println!("{what}: {time:.2?}, {:.1} MB held", memory as f64 / MEGABYTE as f64);
    assert!(memory <= MOST_MEMORY, "{what}: {} MB", memory / MEGABYTE);
    assert!(time <= MOST_TIME, "{what}: {time:?}");
    answer
}

struct Hostile {
    files: BTreeMap<PathBuf, Vec<u8>>,
    request: Request,
}

impl Hostile {
    fn new(compose: impl Into<Vec<u8>>) -> Self {
        let request = Request { files: vec!["/app/compose.yaml".into()], ..Request::default() };
        Self { files: BTreeMap::new(), request }.with("compose.yaml", compose)
    }
    fn with(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.insert(PathBuf::from("/app").join(name), content.into());
        self
    }
    fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.request.environment.insert(name.to_owned(), value.into());
        self
    }

    /// Makes it an app and a normal form, each within the bounds.
    fn load(&self, what: &str) -> Loaded {
        let given: usize = self.files.values().map(Vec::len).sum();
        println!("{what}: {given} bytes");
        let Projected { project: normal, .. } = within_bounds("  normal form", || {
            let projected = project(&self.request, &self.files);
            let json = projected.project.as_ref().map(|project| project.to_json().to_string().len());
            assert!(json.unwrap_or_default() <= 40 * MEGABYTE, "{what}: {json:?} bytes of JSON");
            projected
        });
        let loaded = within_bounds("  app", || {
            let loaded = load(&self.request, &self.files);
            let printed: usize = loaded.diagnostics.iter().map(|complaint| complaint.to_string().len()).sum();
            assert!(printed <= 4 * MEGABYTE, "{what}: {printed} bytes of complaints");
            loaded
        });
        assert!(normal.is_some() || loaded.app.is_none(), "{what}: an app has a normal form");
        loaded
    }

    /// It is refused, and the complaint that says so names a place.
    fn refused(&self, what: &str, message: &str) {
        let loaded = self.load(what);
        assert!(loaded.app.is_none(), "{what} is refused");
        let found = loaded.diagnostics.iter().find(|complaint| complaint.message.contains(message));
        let Some(found) = found else {
            let first: Vec<String> = loaded.diagnostics.iter().take(3).map(ToString::to_string).collect();
            panic!("{what}: no complaint says `{message}`, but:\n{}", first.join("\n"));
        };
        assert!(found.place.is_some(), "{what}: the complaint has a place: {found}");
    }

    /// It is read.
    fn accepted(&self, what: &str) {
        if let Err(refused) = self.load(what).into_result() {
            panic!("{what}: {refused}");
        }
    }
}

/// Lines of a file, one for each number.
fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(line).collect()
}

/// A file that fills `size` bytes with copies of a text.
fn filled(before: &str, text: &str, size: usize, after: &str) -> String {
    format!("{before}{}{after}", text.repeat((size - before.len() - after.len()) / text.len()))
}

/// As large as a file may be.
const FULL: usize = 4 * MEGABYTE - 64;

#[test]
fn aliases_and_merge_keys_do_not_multiply() {
    let mut bomb = String::from("x-0: &a0 {k0: v}\n");
    let mut merging = String::from("x-0: &a0 {k0: v}\n");
    for level in 1..40 {
        let below = vec![format!("*a{}", level - 1); 9].join(", ");
        bomb.push_str(&format!("x-{level}: &a{level} [{below}]\n"));
        merging.push_str(&format!("x-{level}: &a{level} {{<<: [{below}], k{level}: [{below}]}}\n"));
    }
    Hostile::new(bomb).refused("an alias bomb", "aliases expand to more than");
    Hostile::new(merging).refused("a bomb of merge keys", "aliases expand to more than");
    let wide = format!("x: &a {{{}}}\n{}", lines(50_000, |n| format!("k{n}: v, ")), {
        lines(20_000, |n| format!("x-{n}: {{<<: *a}}\n"))
    });
    Hostile::new(wide).refused("a wide mapping merged often", "aliases expand to more than");
    let text = format!("x: &a {}\n{}", "t".repeat(MEGABYTE), lines(20_000, |n| format!("x-{n}: *a\n")));
    Hostile::new(text).refused("a long text aliased often", "aliases expand to more than");
    let anchors =
        format!("services: {{web: {{image: i}}}}\n{}", lines(50_000, |n| format!("x-{n}: &a {n}\n")));
    Hostile::new(anchors).accepted("an anchor defined again and again");
}

#[test]
fn nesting_has_an_end() {
    for (what, text) in [
        ("lists in lists", "[".repeat(FULL)),
        ("mappings in mappings", "{a: ".repeat(FULL / 4)),
        ("lists in lists, of lines", "- ".repeat(FULL / 2)),
        ("keys that are mappings", "? ".repeat(FULL / 2)),
        ("lists that are keys", "[[".repeat(FULL / 2)),
    ] {
        let refused = Hostile::new(text).load(what);
        assert!(refused.app.is_none() && refused.diagnostics[0].place.is_some(), "{what}");
    }
    let block = lines(1500, |n| format!("{}a:\n", " ".repeat(n)));
    Hostile::new(block).refused("mappings in mappings, of lines", "nested deeper");
}

#[test]
fn files_of_many_values_are_refused() {
    Hostile::new(filled("x: [", "[],", FULL, "]")).refused("many empty lists", "more values");
    Hostile::new(filled("x: [", "a,", FULL, "]")).refused("many words", "more values");
    Hostile::new(filled("x:\n", "- {}\n", FULL, "")).refused("many empty mappings", "more values");
    let keys = lines(300_000, |n| format!("x-{n}: 1\n"));
    Hostile::new(keys).load("many keys");
    Hostile::new(filled("", "a: 1\n", FULL, "")).refused("a key given again and again", "given twice");
    Hostile::new(filled("", "---\n", FULL, "")).load("many documents");
    Hostile::new(filled("", "\n", FULL, "")).load("many empty lines");
    Hostile::new(filled("x: [", "*a,", FULL, "]")).refused("aliases of nothing", "there is no anchor `a`");
}

#[test]
fn keys_and_texts_may_be_long() {
    let long = "k".repeat(FULL);
    Hostile::new(format!("? {long}\n: 1\n")).refused("a long key", "unknown key");
    Hostile::new(format!("services: {{web: {{image: i, \"{long}\": 1}}}}")).load("a long key in quotes");
    Hostile::new(format!("services: {{web: {{image: i, command: \"{long}\"}}}}")).accepted("a long command");
    Hostile::new(filled("services: {web: {image: i, command: \"", "\\\"", FULL, "\"}}")).load("many escapes");
    Hostile::new(filled("services: {web: {image: i, command: [", "\"a", FULL, "")).load("an open quote");
    let keys = lines(90, |n| format!("{}{}{n}:\n", " ".repeat(n), "k".repeat(40_000)));
    Hostile::new(keys).load("long keys in long keys");
}

#[test]
fn complaints_on_one_long_line_are_found_in_time() {
    let keys = lines(100_000, |n| format!("ü{n}: 1, "));
    Hostile::new(format!("services: {{web: {{image: i, {keys}}}}}"))
        .refused("unknown keys on one line", "unknown key");
    let variables = lines(100_000, |n| format!("$V{n},"));
    Hostile::new(format!("services: {{web: {{image: i, command: [{variables}]}}}}"))
        .load("unset variables on one line");
    let blocks = lines(10_000, |n| format!("  s{n}:\n    image: |\n      a\n      $V{n}\n"));
    Hostile::new(format!("services:\n{blocks}")).load("unset variables in blocks");
    let needed = lines(20_000, |n| format!("s{n}: {{image: i, depends_on: [t{n}]}},"));
    Hostile::new(format!("services: {{{needed}}}"))
        .refused("names that are not defined", "there is no service");
}

#[test]
fn services_that_extend_do_not_multiply() {
    let base = lines(5_000, |n| format!("      K{n}: v\n"));
    let users = lines(5_000, |n| format!("  s{n}: {{extends: base}}\n"));
    Hostile::new(format!("services:\n  base:\n    image: i\n    environment:\n{base}{users}"))
        .refused("a large service extended often", "more than the loader accepts");
    let other = format!("services:\n  base:\n    image: i\n    environment:\n{base}");
    let users = lines(5_000, |n| format!("  s{n}: {{extends: {{service: base, file: b.yaml}}}}\n"));
    Hostile::new(format!("services:\n{users}"))
        .with("b.yaml", other)
        .refused("a large service of another file extended often", "more than the loader accepts");
    let chain = lines(5000, |n| format!("  s{n}: {{image: i, extends: s{}}}\n", n + 1));
    Hostile::new(format!("services:\n{chain}  s5000: {{image: i}}\n"))
        .refused("a long chain of extends", "levels deep");
    Hostile::new("services:\n  a: {extends: b}\n  b: {extends: {service: c, file: b.yaml}}\n")
        .with("b.yaml", "services:\n  c: {extends: {service: a, file: compose.yaml}}\n")
        .refused("a circle of extends", "services extend each other: a -> b -> c -> a");
}

#[test]
fn files_that_include_do_not_multiply() {
    Hostile::new("include: [b.yaml]\n")
        .with("b.yaml", "include: [compose.yaml]\n")
        .refused("a circle of includes", "files include each other: ");
    let mut tower = Hostile::new("include: [f0.yaml, f0.yaml]\nservices: {web: {image: i}}\n");
    for n in 0..40 {
        let text = format!("include: [f{0}.yaml, f{0}.yaml, f{0}.yaml]\n", n + 1);
        tower = tower.with(&format!("f{n}.yaml"), text);
    }
    let loaded = tower.load("a tower of includes");
    assert!(loaded.app.is_none());
    let large = filled("x-a: [", "a,", MEGABYTE / 4, "]\nservices: {web: {image: i}}\n");
    let includes = lines(5000, |_| "- b.yaml\n".to_owned());
    let loaded = Hostile::new(format!("include:\n{includes}"))
        .with("b.yaml", large)
        .load("a large file included often");
    assert!(loaded.app.is_none());
    Hostile::new("include: ['https://example.org/compose.yaml', 'oci://example.org/app']\n")
        .refused("an include of the network", "Wharf fetches no files");
    for path in ["/etc/passwd", "../other/compose.yaml", "a/../../other.yaml", "~/compose.yaml"] {
        Hostile::new(format!("include: ['{path}']"))
            .variable("HOME", "/home/user")
            .refused(path, &format!("`{path}` leaves `/app`"));
    }
    let mut below =
        Hostile::new("include: [../b.yaml, /app/../b.yaml]").with("../b.yaml", "services: {web: {image: i}}");
    below.files.insert("/b.yaml".into(), b"services: {web: {image: i}}".to_vec());
    below.request.root = Some("/".into());
    below.accepted("an include above the project, and in the root");
}

#[test]
fn circles_of_services_are_found() {
    for (what, keys) in [
        ("depends_on", ["depends_on: [b]", "depends_on: [c]", "depends_on: [a]"]),
        (
            "network_mode",
            ["network_mode: 'service:b'", "network_mode: 'service:c'", "network_mode: 'service:a'"],
        ),
        ("links", ["links: [b]", "links: ['c:x']", "links: [a]"]),
        ("several keys", ["links: [b]", "network_mode: 'service:c'", "depends_on: [a]"]),
    ] {
        let services: Vec<String> = ["a", "b", "c"]
            .iter()
            .zip(keys)
            .map(|(name, key)| format!("  {name}: {{image: i, {key}}}\n"))
            .collect();
        let mut hostile = Hostile::new(format!("services:\n{}", services.concat()));
        hostile.request.allow_unsupported = true;
        hostile.refused(&format!("a circle of {what}"), "services depend on each other: a -> b -> c -> a");
    }
    Hostile::new("services: {a: {image: i, volumes_from: [b]}, b: {image: i, volumes_from: [a]}}")
        .refused("a circle of volumes_from", "services depend on each other: a -> b -> a");
    let ring = lines(10_000, |n| format!("  s{n}: {{image: i, depends_on: [s{}]}}\n", (n + 1) % 10_000));
    Hostile::new(format!("services:\n{ring}")).refused("a long circle", "services depend on each other");
    let layers = lines(120, |n| {
        let needed: Vec<String> = (n + 1..120).map(|needed| format!("s{needed}")).collect();
        format!("  s{n}: {{image: i, depends_on: [{}]}}\n", needed.join(", "))
    });
    Hostile::new(format!("services:\n{layers}")).accepted("services that need all later ones");
}

#[test]
fn variables_do_not_multiply() {
    let nested = format!("{}x{}", "${A:-".repeat(100_000), "}".repeat(100_000));
    Hostile::new(format!("services: {{web: {{image: '{nested}'}}}}"))
        .refused("nested variables", "nested deeper");
    let open = "${A:-".repeat(200_000);
    Hostile::new(format!("services: {{web: {{image: '{open}'}}}}")).load("variables that stay open");
    let nested = format!("{}x{}", "${A:-${B".repeat(25), "}}".repeat(25));
    Hostile::new(format!("services: {{web: {{image: '{}'}}}}", nested.repeat(2000)))
        .load("variables in variables");
    let text = lines(20_000, |n| format!("      A{n}: $BIG$BIG$BIG\n"));
    Hostile::new(format!("services:\n  web:\n    image: i\n    environment:\n{text}"))
        .variable("BIG", "b".repeat(100_000))
        .refused("a long variable used often", "more text than the loader accepts");
    let doubling = format!("A0=xxxxxxxxxx\n{}", lines(60, |n| format!("A{}=$A{n}$A{n}\n", n + 1)));
    let loaded = Hostile::new("services: {web: {image: i}}").with(".env", doubling).load("a doubling .env");
    assert!(loaded.app.is_none());
}

#[test]
fn env_files_may_be_long_but_not_without_end() {
    let env = lines(1_000_000, |n| format!("A{n}=x\n"));
    let loaded = Hostile::new("services: {web: {image: i, env_file: a.env}}")
        .with("a.env", env)
        .load("a long env file");
    assert!(loaded.app.is_none());
    let env = lines(20_000, |n| format!("A{n}=x\n"));
    let services = lines(2_000, |n| format!("  s{n}: {{image: i, env_file: a.env}}\n"));
    let loaded =
        Hostile::new(format!("services:\n{services}")).with("a.env", env).load("an env file used often");
    assert!(loaded.app.is_none());
    let unset = lines(50_000, |n| format!("A{n}=$B{n}\n"));
    Hostile::new("services: {web: {image: i, env_file: a.env}}")
        .with("a.env", unset)
        .load("unset in an env file");
}

#[test]
fn files_that_are_no_text_are_refused() {
    let huge = Hostile::new(vec![b'#'; 100 * MEGABYTE]);
    huge.refused("a file of 100 MB", "too large");
    Hostile::new("services: {web: {image: i, env_file: a.env}}")
        .with("a.env", vec![b'#'; 100 * MEGABYTE])
        .refused("an env file of 100 MB", "too large");
    Hostile::new(vec![0xff; FULL]).refused("bytes that are no text", "not UTF-8");
    Hostile::new(b"services:\n  web:\n    image: \xc3\x28\n".to_vec())
        .refused("a broken letter", "not UTF-8");
    Hostile::new(vec![0; FULL]).refused("zeros", "not YAML");
    Hostile::new("services:\n  web:\n    image: a\0b\n")
        .refused("a zero in a text", "a character that cannot be printed");
    Hostile::new("\u{feff}services:\n  web:\n    image: i\n").accepted("a byte order mark");
    Hostile::new("\t".repeat(FULL)).load("tabs");
    Hostile::new("services:\n\tweb:\n\t\timage: i\n").refused("a tab", "a tab cannot indent");
}

#[test]
fn values_of_any_kind_are_told_apart() {
    let numbers = "99999999999999999999999999999999999999999999";
    for (what, text) in [
        ("a number too large", format!("services: {{web: {{image: i, scale: {numbers}}}}}")),
        ("a size too large", "services: {web: {image: i, mem_limit: 99999999999999999999g}}".to_owned()),
        (
            "a duration too long",
            "services: {web: {image: i, stop_grace_period: 99999999999999999h}}".to_owned(),
        ),
        ("a port too large", "services: {web: {image: i, ports: ['99999999999999999999:80']}}".to_owned()),
        ("a date for a number", "services: {web: {image: i, scale: 2001-12-14}}".to_owned()),
        ("a number for a key", "services: {1: {image: i}}".to_owned()),
        ("nothing for a key", "services: {~: {image: i}}".to_owned()),
        ("a list for a key", "services: {[a, b]: {image: i}}".to_owned()),
        ("a mapping for a key", "services: {{a: b}: {image: i}}".to_owned()),
        ("infinity for a number", "services: {web: {image: i, cpus: .inf}}".to_owned()),
    ] {
        let refused = Hostile::new(text).load(what);
        assert!(refused.app.is_none(), "{what} is refused");
        let complaint = refused.diagnostics.iter().find(|complaint| complaint.is_error()).unwrap();
        assert!(complaint.place.is_some(), "{what}: {complaint}");
    }
    Hostile::new("services: {web: {image: i, environment: {D: 2001-12-14}}}").accepted("a date for a text");
}
