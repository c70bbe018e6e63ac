//! Runs the corpus of real Compose files, where it is at hand, against what reference implementations made of them.
//!
//! The files belong to others and are used from their place beside the repository. A run passes when our normal form
//! equals that of one of the references, or when we refuse what one of them refuses. The runs that do not pass are listed
//! with their reasons in `docs/reference/compose-differences.md`, and in no other place. What we print as YAML must give the
//! same when it is read.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wharf_compose::{Files, Request, load, project};

/// How many runs passed when this was last looked at; fewer are a step back.
const PASSED: usize = 654;

/// What the reference prints for these does not say the same when it is read: an optional dependency on a service that is
/// not active is kept without that service, a Dockerfile whose name is empty is left out, and keys are escaped although no
/// variable is put into them.
const NOT_THE_SAME_AGAIN: [&str; 4] = [
    "docker+compose@v2.26.1/pkg/e2e/fixtures/dependencies/deps-not-required.yaml",
    "docker+compose/pkg/e2e/testdata/TestComposeRunNotRequiredDeps/compose.yaml",
    "docker+compose@v2.26.1/pkg/e2e/fixtures/simple-build-test/compose-interpolate.yaml",
    "compose-spec+compose-spec/12-interpolation.md#L53+image",
];

/// The files as they are.
struct Disk;
impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }
}

/// What was printed, in place of a file.
struct Printed<'a>(&'a Path, &'a str);
impl Files for Printed<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path == self.0 { Ok(self.1.into()) } else { Disk.read(path) }
    }
}

/// One run of the references.
struct Run {
    id: String,
    folder: PathBuf,
    files: Vec<PathBuf>,
    profiles: Vec<String>,
}

impl Run {
    fn request(&self) -> Request {
        let folder = self.folder.display().to_string();
        let variables =
            [("PATH", "/usr/bin:/bin"), ("HOME", "/home/conf"), ("USER", "conf"), ("PWD", folder.as_str())];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Request {
            files: self.files.clone(),
            profiles: self.profiles.clone(),
            environment,
            allow_unsupported: true,
            ..Request::default()
        }
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the references said, by the id of the run.
fn references(corpus: &Path) -> [BTreeMap<String, Value>; 2] {
    let names = ["reference-compose-go-2026-07-21.jsonl", "reference-docker-compose-2.26.1.jsonl"];
    names.map(|name| {
        let lines = lines(&corpus.join(name)).into_iter();
        lines.map(|line| (line["id"].as_str().unwrap().to_owned(), line)).collect()
    })
}

fn runs(corpus: &Path) -> Vec<Run> {
    let mut runs = Vec::new();
    for case in lines(&corpus.join("cases.jsonl")) {
        let id = case["id"].as_str().unwrap().to_owned();
        let folder = corpus.join(case["dir"].as_str().unwrap());
        let names = case["files"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        let files: Vec<PathBuf> = names.map(|name| folder.join(name)).collect();
        let everything = Run {
            id: format!("{id}+profiles"),
            folder: folder.clone(),
            files: files.clone(),
            profiles: vec!["*".to_owned()],
        };
        let automatic = Run {
            id: format!("{id}+auto"),
            folder: folder.clone(),
            files: found_automatically(&folder),
            profiles: vec![],
        };
        runs.extend([Run { id, folder, files, profiles: vec![] }, everything, automatic]);
    }
    runs
}

/// What is loaded where no file is named.
fn found_automatically(folder: &Path) -> Vec<PathBuf> {
    let first = |names: [&str; 4]| names.map(|name| folder.join(name)).into_iter().find(|path| path.exists());
    let file = first(["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"]);
    let over = first([
        "compose.override.yml",
        "compose.override.yaml",
        "docker-compose.override.yml",
        "docker-compose.override.yaml",
    ]);
    file.into_iter().chain(over).collect()
}

/// Where two values differ, as paths with both values.
fn differences(ours: &Value, theirs: &Value, at: &str, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                match b.get(key) {
                    Some(other) => differences(value, other, &format!("{at}.{key}"), found),
                    None => found.push(format!("{at}.{key}: {value} is only ours")),
                }
            }
            found.extend(
                b.iter()
                    .filter(|(key, _)| !a.contains_key(*key))
                    .map(|(key, value)| format!("{at}.{key}: {value} is missing")),
            );
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &format!("{at}[{index}]"), found);
            }
        }
        _ if ours == theirs => {}
        _ => found.push(format!("{at}: {ours} instead of {theirs}")),
    }
}

/// The runs that are known to differ, with the reason.
fn documented() -> BTreeMap<String, String> {
    let page = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/compose-differences.md"));
    let text = fs::read_to_string(page).unwrap();
    let rows =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | "));
    rows.map(|(id, reason)| (id.to_owned(), reason.to_owned())).collect()
}

#[test]
fn the_normal_form_equals_that_of_the_references() {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/compose-corpus"));
    let Ok(corpus) = corpus.canonicalize() else {
        println!("skipped: there is no corpus at {}", corpus.display());
        return;
    };
    let references = references(&corpus);
    let documented = documented();
    let here = corpus.display().to_string();
    let (mut passed, mut failed) = (0, Vec::new());
    for run in runs(&corpus) {
        let theirs: Vec<&Value> = references.iter().filter_map(|lines| lines.get(&run.id)).collect();
        if theirs.is_empty() {
            continue;
        }
        let request = run.request();
        let projected = project(&request, &Disk);
        let ours = projected.project.as_ref().map(|project| {
            let text = project.to_json().to_string().replace(&here, "@CORPUS@");
            serde_json::from_str::<Value>(&text).unwrap()
        });
        if let Some(project) = &projected.project
            && !NOT_THE_SAME_AGAIN.contains(&run.id.as_str())
        {
            let printed = project.to_yaml();
            let path = run.folder.join("printed.yaml");
            let again = Request { files: vec![path.clone()], ..request.clone() };
            let again = wharf_compose::project(&again, &Printed(&path, &printed));
            let complaints: Vec<String> = again.diagnostics.iter().map(ToString::to_string).collect();
            let again = again.project.map(|project| project.to_yaml());
            assert_eq!(again.as_ref(), Some(&printed), "{} read again: {complaints:?}", run.id);
        }
        // The cluster's model must not panic either, whatever a cluster makes of the file.
        let loaded = load(&request, &Disk);
        assert!(ours.is_some() || loaded.app.is_none(), "{}: loaded, and yet refused", run.id);
        let agrees = |reference: &&Value| match &ours {
            Some(ours) => reference.get("config") == Some(ours),
            None => reference["ok"] == false,
        };
        if theirs.iter().any(agrees) {
            passed += 1;
            assert!(!documented.contains_key(&run.id), "{} passes and is listed as a difference", run.id);
            continue;
        }
        println!("{} {}", if documented.contains_key(&run.id) { "known:" } else { "FAILED:" }, run.id);
        match (&ours, theirs[0].get("config")) {
            (Some(ours), Some(config)) => {
                let mut found = Vec::new();
                differences(ours, config, "", &mut found);
                found.iter().take(12).for_each(|difference| println!("    {difference}"));
            }
            (Some(_), None) => println!("    accepted; the reference: {}", theirs[0]["error"]),
            (None, _) => {
                let errors = projected.diagnostics.iter().filter(|diagnostic| diagnostic.is_error());
                errors.take(3).for_each(|error| println!("{error}"));
            }
        }
        failed.push(run.id);
    }
    println!("{passed} passed, {} failed", failed.len());
    failed.retain(|id| !documented.contains_key(id));
    assert_eq!(failed, Vec::<String>::new(), "these differ and are not listed");
    assert!(passed >= PASSED, "{passed} passed; it was {PASSED}");
}
