//! One input of the fuzzers: bytes that stand for a folder of files, and what holds of the answer to every input.
//!
//! The same for the run in the test suite and for `cargo fuzz`. A line `#@ NAME` begins a further file, which is loaded
//! after the first one if its name begins with `over`; before the first such line stands `compose.yaml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use wharf_compose::{Complaint, Diagnostic, Place, Project, Request, load, project};

/// Complaints are cut at a thousand bytes, of which some are written as several.
const LONGEST_TEXT: usize = 10_000;
/// Errors and warnings that are kept, and the note that there are more.
const MOST_COMPLAINTS: usize = 1001;

/// A folder `/app`.
struct Folder {
    files: BTreeMap<PathBuf, Vec<u8>>,
    request: Request,
}

impl Folder {
    fn of(input: &[u8]) -> Self {
        let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        let mut current = PathBuf::from("/app/compose.yaml");
        let mut request =
            Request { files: vec![current.clone()], allow_unsupported: true, ..Request::default() };
        files.insert(current.clone(), Vec::new());
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            if let Some(name) = line.strip_prefix(b"#@ ") {
                let name = String::from_utf8_lossy(name).trim().to_owned();
                current = PathBuf::from("/app").join(&name);
                if name.starts_with("over") && !request.files.contains(&current) {
                    request.files.push(current.clone());
                }
                // What else a request may say is drawn from the input.
                request.allow_unsupported &= !name.contains("strict");
                if name.contains("profile") {
                    request.profiles = vec!["*".to_owned()];
                }
                files.entry(current.clone()).or_default();
            } else {
                files.entry(current.clone()).or_default().extend_from_slice(line);
            }
        }
        let variables =
            [("SET", "value"), ("EMPTY", ""), ("NUMBER", "80"), ("DOLLAR", "${SET}"), ("HOME", "/home/u")];
        request.environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { files, request }
    }
}

/// What came of an input, for statistics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Whether the files make an app.
    #[allow(dead_code, reason = "only the run in the test suite counts")]
    pub(crate) accepted: bool,
}

/// Loads an input, and panics where the answer is not what every answer must be.
pub(crate) fn check(input: &[u8]) -> Outcome {
    let folder = Folder::of(input);
    let loaded = load(&folder.request, &folder.files);
    let errors = loaded.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
    assert_eq!(loaded.app.is_some(), errors == 0, "there is an app exactly if there is no error");
    check_complaints(&folder, &loaded.diagnostics);
    let again = load(&folder.request, &folder.files);
    assert_eq!(loaded.app, again.app, "the same files give the same app");
    assert_eq!(loaded.diagnostics, again.diagnostics, "the same files give the same complaints");
    check_normal_form(&folder);
    Outcome { accepted: loaded.app.is_some() }
}

/// The normal form of an input, and what is printed of it.
fn check_normal_form(folder: &Folder) {
    let projected = project(&folder.request, &folder.files);
    let errors = projected.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
    assert_eq!(projected.project.is_some(), errors == 0, "there is a project exactly if there is no error");
    check_complaints(folder, &projected.diagnostics);
    let again = project(&folder.request, &folder.files);
    assert_eq!(projected.diagnostics, again.diagnostics, "the same files give the same complaints");
    let printed = |project: &Project| {
        let hashes: Vec<_> = project.services().iter().map(|service| project.hash(service)).collect();
        (project.to_json(), project.to_yaml(), hashes, project.images())
    };
    let (first, second) = (projected.project.as_ref().map(printed), again.project.as_ref().map(printed));
    assert_eq!(first, second, "the same files give the same normal form");
}

fn check_complaints(folder: &Folder, complaints: &[Diagnostic]) {
    assert!(complaints.len() <= MOST_COMPLAINTS, "{} complaints", complaints.len());
    for complaint in complaints {
        assert!(!complaint.message.is_empty(), "a complaint says something: {complaint:?}");
        // Of more complaints than are shown, only that is said.
        let is_rest = complaint.complaint == Complaint::Note;
        assert!(
            !complaint.is_error() || complaint.hint.is_some() || is_rest,
            "an error says what to write: {complaint:?}"
        );
        let hint = complaint.hint.as_deref().unwrap_or_default();
        for text in [&complaint.message, &complaint.key, hint] {
            assert!(text.len() <= LONGEST_TEXT, "{} bytes in one complaint", text.len());
        }
        let places = complaint.place.iter().chain(complaint.related.iter().map(|related| &related.place));
        for place in places {
            check_place(&folder.files, place);
        }
        let printed = complaint.to_string();
        assert!(printed.len() <= 5 * LONGEST_TEXT, "{} bytes printed", printed.len());
        assert!(!printed.contains(['\u{1b}', '\0', '\u{7}']), "what is printed moves no cursor: {printed:?}");
    }
}

/// A place is in one of the files, and its excerpt is what stands there.
fn check_place(files: &BTreeMap<PathBuf, Vec<u8>>, place: &Place) {
    let line = line(files, &place.file, place.line).unwrap_or_else(|| panic!("no such line: {place:?}"));
    let characters = line.chars().count();
    assert!(place.column >= 1 && place.column as usize <= characters + 1, "no such column: {place:?}");
    assert!(place.excerpt.len() <= 1300, "{} bytes of excerpt", place.excerpt.len());
    let shown = line.chars().skip(place.excerpt_column as usize - 1);
    assert!(shown.zip(place.excerpt.chars()).all(|(a, b)| a == b), "not what stands there: {place:?}");
}

/// A line of a file as editors count them.
fn line(files: &BTreeMap<PathBuf, Vec<u8>>, file: &Path, number: u32) -> Option<String> {
    let text = String::from_utf8_lossy(files.get(file)?);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n").replace('\r', "\n");
    text.split('\n').nth(number as usize - 1).map(str::to_owned)
}
