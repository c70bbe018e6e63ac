//! Runs the corpus of real Compose files, where it is at hand, against what reference implementations made of them.
//!
//! The files belong to others and are used from their place beside the repository. With everything unsupported allowed,
//! a file that both references refuse must be refused; how many of the files they accept are accepted is printed.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wharf_compose::{Files, Loaded, Request, load};

/// The files as they are.
struct Disk;
impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
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
    fn load(&self) -> Loaded {
        let folder = self.folder.display().to_string();
        let variables =
            [("PATH", "/usr/bin:/bin"), ("HOME", "/home/conf"), ("USER", "conf"), ("PWD", folder.as_str())];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let request = Request {
            files: self.files.clone(),
            profiles: self.profiles.clone(),
            environment,
            allow_unsupported: true,
            ..Request::default()
        };
        load(&request, &Disk)
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
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
    let first = |stems: [&str; 2], suffix: &str| {
        let names =
            stems.into_iter().flat_map(|stem| ["yaml", "yml"].map(|end| format!("{stem}{suffix}.{end}")));
        names.map(|name| folder.join(name)).find(|path| path.exists())
    };
    let stems = ["compose", "docker-compose"];
    first(stems, "").into_iter().chain(first(stems, ".override")).collect()
}

#[test]
fn files_that_the_references_refuse_are_refused() {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/compose-corpus"));
    if !corpus.join("cases.jsonl").exists() {
        println!("skipped: there is no corpus at {}", corpus.display());
        return;
    }
    let names = ["reference-compose-go-2026-07-21.jsonl", "reference-docker-compose-2.26.1.jsonl"];
    let references = names.map(|name| {
        let lines = lines(&corpus.join(name));
        lines
            .into_iter()
            .map(|line| (line["id"].as_str().unwrap().to_owned(), line))
            .collect::<BTreeMap<_, _>>()
    });
    let (mut passed, mut failed) = (0, 0);
    let mut wrongly_accepted = Vec::new();
    for run in runs(corpus) {
        let verdicts: Vec<bool> =
            references.iter().filter_map(|lines| lines.get(&run.id)?["ok"].as_bool()).collect();
        if verdicts.is_empty() {
            continue;
        }
        let loaded = run.load();
        let accepted = loaded.app.is_some();
        if verdicts.contains(&accepted) {
            passed += 1;
            continue;
        }
        failed += 1;
        let first = loaded.diagnostics.iter().find(|diagnostic| diagnostic.is_error());
        match first {
            Some(first) => println!("refused: {}\n{first}\n", run.id),
            None => {
                println!("accepted: {}: {}\n", run.id, references[0][&run.id]["error"]);
                wrongly_accepted.push(run.id);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    assert!(passed >= 596, "{passed} passed; it was 596");
    assert_eq!(wrongly_accepted, Vec::<String>::new());
}
