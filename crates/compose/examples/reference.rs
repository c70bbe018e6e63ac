//! Prints the reference of Compose attributes as Markdown, or with `--tests` each attribute and the tests that show it,
//! one pair a line. `cargo xtask compose` writes and checks with it.

use wharf_compose::reference::{Attribute, Status, attributes, sections};

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
fn main() {
    if std::env::args().any(|argument| argument == "--tests") {
        for attribute in attributes() {
            for test in attribute.tests {
                println!("{} {test}", attribute.path);
            }
        }
    } else {
        print!("{}", document());
    }
}

const INTRODUCTION: &str = "\
# Compose attributes

Every attribute of the Compose Specification, how Wharf honours it on one host and on many, and the test that shows it on
real containers. Written by `cargo xtask compose` from `crates/compose/src/reference`; tests hold it against the loader.

- **yes**: as the specification says.
- **partly**: some values are refused; each is named with what to write instead.
- **no**: an error with file, line, column, reason and remedy. `--allow-unsupported` makes it a warning, and then it has no effect.
- **no effect**: it may be there and changes nothing, which is warned of.

`*` is any name, `[]` any item of a list; short forms stand for what they are short for. A key that is in none of these tables is
unknown, which is an error that names the closest known one. Keys that begin with `x-` are yours, except for `x-wharf`, which has
[a reference of its own](x-wharf.md). YAML anchors and merge keys, `${VARIABLE:-default}` in all its forms, `.env`, several files,
`!reset` and `!override` work as specified.

A test `attributes` is the row of that name in [the table of attributes](../../tests/tests/attributes.rs): the file that has it is
brought up with `wharf up`, and what it becomes is read from `docker inspect` or from inside the container. Others are named by
file and function.
";

fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    for section in sections() {
        text.push_str(&format!("\n## {}\n\n", section.title));
        text.push_str("| attribute | | on one host | on many hosts | test |\n|---|---|---|---|---|\n");
        for attribute in section.attributes {
            text.push_str(&row(attribute));
        }
    }
    text
}

fn row(attribute: &Attribute) -> String {
    let status = match attribute.status {
        Status::Honoured => "yes",
        Status::Partly => "partly",
        Status::Refused => "no",
        Status::WithoutEffect => "no effect",
    };
    let many = match (attribute.many, attribute.status) {
        ("", Status::Honoured | Status::Partly) => "the same",
        (many, _) => many,
    };
    let tests: Vec<String> = attribute.tests.iter().map(|test| format!("`{test}`")).collect();
    format!(
        "| `{}` | {status} | {} | {} | {} |\n",
        attribute.path,
        cell(&how(attribute)),
        cell(many),
        tests.join(", ")
    )
}

fn how(attribute: &Attribute) -> String {
    let mut parts = Vec::new();
    if !attribute.how.is_empty() {
        parts.push(attribute.how.to_owned());
    }
    for refusal in attribute.refusals() {
        let said = format!("{}. Instead: {}", refusal.reason, refusal.instead);
        parts.push(match attribute.status {
            Status::Partly => format!("Not `{}`: {said}", refusal.value.trim_matches('"')),
            _ => said,
        });
    }
    let below = attribute.below();
    if !below.is_empty() {
        let names: Vec<String> = below
            .iter()
            .filter_map(|path| path.strip_prefix(attribute.path))
            .map(|rest| format!("`{}`", rest.trim_start_matches('.')))
            .collect();
        parts.push(format!("With {}", names.join(", ")));
    }
    parts.join("<br>")
}

/// Text that stays within its cell.
fn cell(text: &str) -> String {
    text.replace('|', r"\|").replace('\n', " ")
}
