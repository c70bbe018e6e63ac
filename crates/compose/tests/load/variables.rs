//! Variables: where they come from, and where they go.

use crate::folder::{Folder, web};

fn environment(folder: &Folder) -> Vec<(String, Option<String>)> {
    folder.web().container.environment.into_iter().collect()
}
fn set(name: &str, value: &str) -> (String, Option<String>) {
    (name.to_owned(), Some(value.to_owned()))
}

#[test]
fn the_environment_wins_over_the_env_file_of_the_project() {
    let folder =
        web("environment: {A: $A, B: $B}").file(".env", "A=file\nB=${A}-file\n").variable("A", "outer");
    assert_eq!(environment(&folder), [set("A", "outer"), set("B", "outer-file")]);
}

#[test]
fn named_env_files_replace_the_default_one_and_the_last_wins() {
    let mut folder = web("environment: {A: '$A', B: '${B-}'}")
        .file(".env", "A=default\nB=default\n")
        .file("one.env", "A=one\n")
        .file("two.env", "A=${A}-two\n");
    folder.request.env_files = vec!["/app/one.env".into(), "/app/two.env".into()];
    assert_eq!(environment(&folder), [set("A", "one-two"), set("B", "")]);
}

#[test]
fn an_unset_variable_is_blank_with_a_warning_at_its_place() {
    let folder = web("environment:\n  A: \"x ${A} $B\"\n  C: |\n    first\n    second $D\n");
    assert_eq!(environment(&folder), [set("A", "x  "), set("C", "first\nsecond \n")]);
    insta::assert_snapshot!(folder.complaints(), @r#"
    warning: The "A" variable is not set. Defaulting to a blank string.
     --> /app/compose.yaml:5:13 (services.web.environment.A)
      |
    5 |       A: "x ${A} $B"
      |             ^^^
    warning: The "B" variable is not set. Defaulting to a blank string.
     --> /app/compose.yaml:5:18 (services.web.environment.A)
      |
    5 |       A: "x ${A} $B"
      |                  ^^
    warning: The "D" variable is not set. Defaulting to a blank string.
     --> /app/compose.yaml:8:16 (services.web.environment.C)
      |
    8 |         second $D
      |                ^^
    "#);
}

#[test]
fn a_required_variable_is_an_error_at_its_place() {
    let folder =
        web("environment:\n  A: \"${A:?tell me}\"\n  B: ${B\nuser: ${EMPTY:?}").variable("EMPTY", "");
    insta::assert_snapshot!(folder.complaints(), @r#"
    error: the variable `A` is required: tell me
     --> /app/compose.yaml:5:11 (services.web.environment.A)
      |
    5 |       A: "${A:?tell me}"
      |           ^^^
      = help: set `A` in the environment or in `.env`
    error: `${B` is not a variable
     --> /app/compose.yaml:6:10 (services.web.environment.B)
      |
    6 |       B: ${B
      |          ^^^
      = help: the closing `}` is missing; write `$$` for a dollar sign
    error: the variable `EMPTY` is required but has no value
     --> /app/compose.yaml:7:11 (services.web.user)
      |
    7 |     user: ${EMPTY:?}
      |           ^^^^^^^
      = help: `EMPTY` is set, but empty; give it a value
    "#);
}

#[test]
fn services_take_variables_from_files_and_from_outside() {
    let folder = web("env_file:\n  - a.env\n  - {path: b.env, format: raw}\n  - {path: none.env, required: false}\nenvironment: [C=own, OUTER, ABSENT, FROM_FILE]")
        .file("a.env", "A=1\nB=\"$A\"\nC=file\nFROM_FILE=x\n")
        .file("b.env", "D='$A'\n")
        .variable("OUTER", "outer");
    let expected = [
        set("A", "1"),
        ("ABSENT".to_owned(), None),
        set("B", "1"),
        set("C", "own"),
        set("D", "'$A'"),
        set("FROM_FILE", "x"),
        set("OUTER", "outer"),
    ];
    assert_eq!(environment(&folder), expected);
}

#[test]
fn a_fault_in_an_env_file_has_its_own_place() {
    let folder = web("env_file: a.env").file("a.env", "A=1\nB='open\n");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: the value of `B` has no closing `'`
     --> /app/a.env:2:3
      |
    2 | B='open
      |   ^
      = help: close the quote, or leave it out
    ");
}

#[test]
fn scalars_reach_the_container_as_compose_prints_them() {
    let folder = web("environment: {A: 1.50, B: 022, C: true, D: 1e3, E: yes, F: 0x10, G: '022', H: ''}");
    let expected = [
        ("A", "1.5"),
        ("B", "18"),
        ("C", "true"),
        ("D", "1000"),
        ("E", "yes"),
        ("F", "16"),
        ("G", "022"),
        ("H", ""),
    ];
    assert_eq!(environment(&folder), expected.map(|(name, value)| set(name, value)));
}

#[test]
fn the_name_of_the_app_is_a_variable() {
    let folder = Folder::with(
        "name: shop-${STAGE}\nservices: {web: {image: i, hostname: '${COMPOSE_PROJECT_NAME}-web'}}\n",
    )
    .variable("STAGE", "test");
    assert_eq!(folder.app().name.as_str(), "shop-test");
    assert_eq!(folder.web().container.hostname.as_deref(), Some("shop-test-web"));
}

#[test]
fn the_name_comes_from_the_request_the_file_or_the_folder() {
    let mut folder = Folder::with("services: {web: {image: i}}\n");
    assert_eq!(folder.app().name.as_str(), "app");
    folder.request.project_directory = Some("/srv/_My Shop.2".into());
    assert_eq!(folder.app().name.as_str(), "myshop2");
    folder.request.project_name = Some("given".to_owned());
    assert_eq!(folder.app().name.as_str(), "given");
    folder.request.project_name = Some("Not Legal".to_owned());
    insta::assert_snapshot!(folder.complaints(), @r"
    error: `Not Legal` is not a name for a project
      = help: use lower-case letters, digits, `-` and `_`, and start with a letter or a digit, such as `notlegal`
    ");
}
