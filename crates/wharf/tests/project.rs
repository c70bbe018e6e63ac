//! Which files, variables and profiles the program takes, by what `wharf config` prints: as Compose does it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with an app, one below it, and one beside it.
struct Place(TempDir);

/// What the program printed, and how it ended.
struct Said {
    code: i32,
    out: String,
    err: String,
}

const SHOP: &str = "\
name: shop
services:
  web: {image: 'web:${TAG:-none}'}
  db: {image: 'db:1', volumes: ['data:/data']}
  debug: {image: 'debug:1', profiles: [debug]}
volumes: {data: }
";

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("app/compose.yaml", SHOP).write("app/below/x", "").write("other/x", "");
        place
    }
    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }
    fn wharf(&self, folder: &str, arguments: &[&str], variables: &[(&str, &str)], input: &str) -> Said {
        let folder = self.0.path().join(folder);
        let mut child = Command::new(env!("CARGO_BIN_EXE_wharf"))
            .args(arguments)
            .current_dir(&folder)
            .env_clear()
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who does not read it closes it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }
    /// The lines that `wharf … config …` prints.
    #[track_caller]
    fn lines(&self, folder: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
        let said = self.wharf(folder, arguments, variables, "");
        assert_eq!(said.code, 0, "{}", said.err);
        said.out.lines().map(str::to_owned).collect()
    }
}

#[test]
fn files_are_named_or_found_here_or_above() {
    let place = Place::new();
    let images = |folder, arguments: &[&str]| place.lines(folder, arguments, &[]);
    assert_eq!(images("app", &["config", "--images"]), ["db:1", "web:none"]);
    assert_eq!(images("app/below", &["config", "--images"]), ["db:1", "web:none"]);
    assert_eq!(
        images("other", &["--project-directory", "../app", "config", "--images"]),
        ["db:1", "web:none"]
    );
    assert_eq!(images("other", &["-f", "../app/compose.yaml", "config", "--images"]), ["db:1", "web:none"]);
    let none = place.wharf("other", &["config"], &[], "");
    assert_eq!(none.code, 1);
    assert!(none.err.contains("no Compose file in ") && none.err.contains("hint: name one with `-f`"));

    place.write("app/compose.override.yml", "services: {web: {image: 'over:1'}}");
    assert_eq!(images("app", &["config", "--images"]), ["db:1", "over:1"]);
    assert_eq!(images("app", &["-f", "compose.yaml", "config", "--images"]), ["db:1", "web:none"]);
    place.write("app/compose.yml", SHOP);
    let said = place.wharf("app", &["config", "-q"], &[], "");
    assert_eq!((said.code, said.out.as_str()), (0, ""));
    let said = place.wharf("app", &["config", "--services"], &[], "");
    assert!(
        said.err.contains("compose.yaml is used as the Compose file, and not compose.yml"),
        "{}",
        said.err
    );

    // Standard input is a file like others; what it names begins here.
    let piped = place.wharf("other", &["-f", "-", "config", "--format", "json"], &[], SHOP);
    let json: Value = serde_json::from_str(&piped.out).unwrap();
    assert_eq!(json["services"]["web"]["image"], "web:none");
    let wrong = place.wharf("other", &["-f", "-", "config"], &[], "services: {web: {imagee: x}}");
    assert!(wrong.err.contains("<standard input>:1:18 (services.web.imagee)"), "{}", wrong.err);
}

#[test]
fn variables_come_from_the_environment_and_from_env_files() {
    let place = Place::new();
    let images = ["config", "--images"];
    place.write("app/.env", "TAG=beside").write("app/below/.env", "TAG=below");
    assert_eq!(place.lines("app", &images, &[])[1], "web:beside");
    assert_eq!(place.lines("app", &images, &[("TAG", "outside")])[1], "web:outside");
    // The one of the folder one is in counts before the one beside the file.
    assert_eq!(place.lines("app/below", &images, &[])[1], "web:below");
    assert_eq!(place.lines("app", &images, &[("COMPOSE_DISABLE_ENV_FILE", "1")])[1], "web:none");
    place.write("one.env", "TAG=one").write("two.env", "TAG=two");
    let both = ["--env-file", "../one.env", "config", "--images", "--env-file", "../two.env"];
    assert_eq!(place.lines("app", &both, &[])[1], "web:two");
    assert_eq!(place.lines("app", &images, &[("COMPOSE_ENV_FILES", "../two.env,../one.env")])[1], "web:one");
    let missing = place.wharf("app", &["--env-file", "nope", "config"], &[], "");
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("there is no file") && missing.err.contains("nope"), "{}", missing.err);
    assert_eq!(place.wharf("app", &["config"], &[("COMPOSE_DISABLE_ENV_FILE", "perhaps")], "").code, 2);
}

#[test]
fn variables_may_say_which_files_profiles_and_name() {
    let place = Place::new();
    let services = ["config", "--services"];
    assert_eq!(place.lines("app", &services, &[]), ["db", "web"]);
    assert_eq!(place.lines("app", &services, &[("COMPOSE_PROFILES", " debug ,x")]), ["db", "debug", "web"]);
    assert_eq!(place.lines("app", &["--profile", "*", "config", "--services"], &[]), ["db", "debug", "web"]);
    let given = ["--profile", "x", "config", "--services"];
    assert_eq!(place.lines("app", &given, &[("COMPOSE_PROFILES", "debug")]), ["db", "web"]);

    place.write("other/a.yml", "services: {a: {image: a}}").write("other/b.yml", "services: {b: {image: b}}");
    assert_eq!(place.lines("other", &services, &[("COMPOSE_FILE", "a.yml:b.yml")]), ["a", "b"]);
    place.write("other/.env", "COMPOSE_FILE=a.yml;../app/compose.yaml\nCOMPOSE_PATH_SEPARATOR=;\nCOMPOSE_PROFILES=debug\nCOMPOSE_PROJECT_NAME=named\n");
    assert_eq!(place.lines("other", &services, &[]), ["a", "db", "debug", "web"]);
    assert_eq!(place.lines("other", &["config"], &[])[0], "name: named");
    assert_eq!(place.lines("other", &["config", "-p", "flag"], &[])[0], "name: flag");
    assert_eq!(place.lines("other", &["-f", "b.yml", "config", "--services"], &[]), ["b"]);
    // An `.env` beside files that another named is read, too.
    place.write("app/.env", "TAG=there");
    place.write("other/.env", "COMPOSE_FILE=../app/compose.yaml\n");
    assert_eq!(place.lines("other", &["config", "--images"], &[]), ["db:1", "web:there"]);
}

#[test]
fn config_prints_what_was_asked_for() {
    let place = Place::new();
    let lines = |arguments: &[&str]| place.lines("app", arguments, &[]);
    assert_eq!(lines(&["config", "--volumes"]), ["data"]);
    assert_eq!(lines(&["config", "--networks"]), ["default"]);
    assert_eq!(lines(&["config", "--profiles"]), ["debug"]);
    place.write(
        "thinks/compose.yaml",
        "services: {a: {image: a, models: [llm]}}\nmodels: {llm: {model: ai/small}, idle: {model: ai/idle}}",
    );
    assert_eq!(place.lines("thinks", &["config", "--models"], &[]), ["llm"]);
    assert_eq!(place.lines("app", &["config", "--environment"], &[("A", "b")])[0], "A=b");
    let hashes = lines(&["config", "--hash", "*"]);
    assert_eq!(hashes.len(), 2);
    assert_eq!(lines(&["config", "--hash", "web"])[0], hashes[1]);
    assert_ne!(place.lines("app", &["config", "--hash", "web"], &[("TAG", "2")])[0], hashes[1]);
    assert_eq!(place.wharf("app", &["config", "--hash", "wep"], &[], "").code, 1);
    let names: Vec<String> =
        serde_json::from_str(&lines(&["--format", "json", "config", "--services"]).concat()).unwrap();
    assert_eq!(names, ["db", "web"]);
    assert!(lines(&["config", "--no-interpolate"]).concat().contains("web:${TAG:-none}"));
    assert_eq!(lines(&["config", "--services", "web"]), ["web"]);

    let path = place.0.path().join("app/out.yaml");
    assert_eq!(lines(&["config", "-o", "out.yaml"]), Vec::<String>::new());
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(written, place.wharf("app", &["config"], &[], "").out);
    // What it prints, it reads, and it says the same.
    let again = place.wharf("app", &["-f", "out.yaml", "config"], &[], "");
    assert_eq!(again.out, written);
}

#[test]
fn a_check_says_everything_that_is_wrong_at_once() {
    let place = Place::new();
    place.write(
        "bad/compose.yaml",
        "services:\n  web:\n    image: i\n    prots: ['80:80']\n    mem_limit: 12 quux\n    depends_on: [dbb]\n    isolation: hyperv\n    network_mode: 'container:x'\n  db: {image: '${NEEDED:?say it}', volumes: ['data:/data']}\n",
    );
    let said = place.wharf("bad", &["config", "--check"], &[], "");
    assert_eq!(said.code, 1);
    for part in ["`prots`", "12 quux", "`dbb`", "isolation", "network_mode", "NEEDED", "`data`"] {
        assert!(said.err.contains(part), "{part}: {}", said.err);
    }
    assert!(said.err.contains(" --> compose.yaml:4:5 (services.web.prots)"), "{}", said.err);
    assert!(said.err.contains("error: the Compose file has 7 errors\n"), "{}", said.err);
    assert!(
        said.err.contains("hint: 2 of them would be warnings with `--allow-unsupported`"),
        "{}",
        said.err
    );
    // What only a cluster cannot do is no concern of the normal form.
    place.write("bad/compose.yaml", "services: {web: {image: i, isolation: hyperv}}\n");
    assert_eq!(place.wharf("bad", &["config", "-q"], &[], "").code, 0);
    assert_eq!(place.wharf("bad", &["config", "--check"], &[], "").code, 1);
    let allowed = place.wharf("bad", &["config", "--check", "--allow-unsupported"], &[], "");
    assert_eq!(allowed.code, 0, "{}", allowed.err);
    assert!(allowed.err.contains("warning: ") && allowed.err.contains("bad is in order: 1 service"));
    // What is not here cannot be allowed either, and nothing says that it could.
    place.write("bad/compose.yaml", "include: ['https://h/r.git']\nservices: {web: {image: i}}\n");
    let remote = place.wharf("bad", &["config", "--check"], &[], "");
    assert!(remote.err.contains("Wharf fetches no files"), "{}", remote.err);
    assert!(!remote.err.contains("--allow-unsupported"), "{}", remote.err);
}
