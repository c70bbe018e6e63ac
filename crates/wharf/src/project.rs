//! Which Compose files, variables and profiles a command works with, and what they say.
//!
//! Flags win over variables, the environment's variables over those of `.env`. Files are found and variables are read as Compose does it:
//! `.env` may say which files there are (`COMPOSE_FILE`), and the folder of the files may have another `.env`.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use wharf_compose as compose;
use wharf_model::AppName;

use crate::{
    Usage,
    cli::Files,
    commands::{env, environment},
    hint,
    output::{Color, Output},
};

/// Names of Compose files, in the order in which they are looked for.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// Names of files that add to one that was found.
const OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];
/// Standard input, as a file is named.
const STDIN: &str = "-";
/// More is read from no pipe.
const LARGEST: u64 = 32 << 20;

/// What is loaded, and from where.
pub(crate) struct Sources {
    /// The request, for [`compose::load`] and [`compose::project`].
    pub(crate) request: compose::Request,
    /// The files of this machine, and standard input.
    pub(crate) disk: Disk,
    /// The folder the command runs in.
    here: PathBuf,
    /// What is to be said of how the files were found.
    remarks: Vec<String>,
    /// Complaints about variables that decided which files to load.
    early: Vec<compose::Diagnostic>,
}

/// What flags, the environment and `.env` say.
pub(crate) fn sources(files: &Files) -> Result<Sources> {
    let here = here()?;
    let disk = Disk::default();
    let absolute = |path: &PathBuf| if path == Path::new(STDIN) { path.clone() } else { here.join(path) };
    let given: Vec<PathBuf> = files.file.iter().map(absolute).collect();
    let project_directory = files.project_directory.as_ref().map(|folder| here.join(folder));
    let folder_of = |paths: &[PathBuf]| -> PathBuf {
        let first = || paths.iter().find(|path| *path != Path::new(STDIN))?.parent().map(Path::to_owned);
        project_directory.clone().or_else(first).unwrap_or_else(|| here.clone())
    };
    let mut variables: BTreeMap<String, String> = environment().collect();
    variables.entry("PWD".to_owned()).or_insert_with(|| here.display().to_string());

    let listed: Vec<PathBuf> = if files.env_file.is_empty() {
        list(variables.get("COMPOSE_ENV_FILES"), ",").map(PathBuf::from).collect()
    } else {
        files.env_file.clone()
    };
    let listed: Vec<PathBuf> = listed.iter().map(|path| here.join(path)).collect();
    let disabled = flag(&variables, "COMPOSE_DISABLE_ENV_FILE")?;
    let env_files = |folder: &Path| -> Vec<PathBuf> {
        if !listed.is_empty() {
            return listed.clone();
        }
        let default = folder.join(".env");
        if !disabled && default.is_file() { vec![default] } else { Vec::new() }
    };

    // The variables known before any file is, which may say what the files are.
    let first = folder_of(&given);
    let (known, early) = compose::with_env_files(variables.clone(), &env_files(&first), &disk);
    let mut remarks = Vec::new();
    let separator = known.get("COMPOSE_PATH_SEPARATOR").filter(|text| !text.is_empty());
    let separator = separator.map_or(":", String::as_str);
    let named: Vec<_> = list(known.get("COMPOSE_FILE"), separator).map(PathBuf::from).collect();
    let paths = match (given.is_empty(), named.is_empty()) {
        (false, _) => given,
        (true, false) => named.iter().map(absolute).collect(),
        (true, true) => find(&first, &mut remarks)?,
    };

    // The folder of the files may have an `.env` that was not seen before.
    let folder = folder_of(&paths);
    let again = env_files(&folder);
    let moved = folder != first && listed.is_empty();
    let (all, _said_when_loaded) = match moved {
        true => compose::with_env_files(known.clone(), &again, &disk),
        false => (known.clone(), Vec::new()),
    };
    let profiles = match files.profile.as_slice() {
        [] => list(all.get("COMPOSE_PROFILES"), ",").map(str::to_owned).collect(),
        given => given.to_vec(),
    };
    let request = compose::Request {
        files: paths,
        root: repository_of(&folder),
        project_directory: Some(folder),
        project_name: files.project_name.clone().filter(|name| !name.is_empty()),
        profiles,
        environment: if moved { known } else { variables },
        // With none the loader reads `.env` of the folder, so that none at all has to be said.
        env_files: if disabled && again.is_empty() { vec![PathBuf::from("/dev/null")] } else { listed },
        ..compose::Request::default()
    };
    Ok(Sources { request, disk, here, remarks, early: if moved { early } else { Vec::new() } })
}

/// The folder of the Compose file, or the project's if the file is on no disk.
pub(crate) fn folder(files: &Files) -> Option<PathBuf> {
    let request = sources(files).ok()?.request;
    let first = request.files.iter().find(|path| *path != Path::new(STDIN));
    first.and_then(|path| path.parent().map(Path::to_owned)).or(request.project_directory)
}

/// The folder of the repository that a folder is in, if it is in one: what belongs together, and no `include` leaves.
fn repository_of(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|above| above.join(".git").exists()).map(Path::to_owned)
}

/// The folder this runs in, by the name one went there, as shells know it.
fn here() -> Result<PathBuf> {
    let real = std::env::current_dir().context("cannot tell which folder this is")?;
    let id = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let named = env("PWD").map(PathBuf::from).filter(|named| named.is_absolute() && id(named) == id(&real));
    Ok(named.unwrap_or(real))
}

/// The parts of a variable that lists things.
fn list<'a>(value: Option<&'a String>, separator: &'a str) -> impl Iterator<Item = &'a str> {
    let parts = value.into_iter().flat_map(move |value| value.split(separator));
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// A variable that says yes or no.
fn flag(variables: &BTreeMap<String, String>, name: &str) -> Result<bool> {
    match variables.get(name).map(String::as_str) {
        None | Some("" | "0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
        Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
        Some(other) => bail!(Usage(format!("the variable {name} is `{other}`: it should be true or false"))),
    }
}

/// The Compose file of a folder or one above it, and what adds to it.
fn find(folder: &Path, remarks: &mut Vec<String>) -> Result<Vec<PathBuf>> {
    let mut first = |folder: &Path, names: &[&str], what: &str| {
        let mut found = names.iter().map(|name| folder.join(name)).filter(|path| path.exists());
        let winner = found.next()?;
        let others: Vec<_> = found.filter_map(|path| Some(path.file_name()?.display().to_string())).collect();
        if !others.is_empty() {
            let others = others.join(", ");
            remarks.push(format!("{} is used as the {what}, and not {others}", winner.display()));
        }
        Some(winner)
    };
    for folder in folder.ancestors() {
        if let Some(main) = first(folder, &NAMES, "Compose file") {
            let more = first(folder, &OVERRIDES, "file that adds to it");
            return Ok(std::iter::once(main).chain(more).collect());
        }
    }
    bail!(hint(
        format!("no Compose file in {} or above", folder.display()),
        "name one with `-f`; it is usually called compose.yaml"
    ))
}

/// The files of this machine; `-` is standard input, which is read once.
#[derive(Default)]
pub(crate) struct Disk {
    stdin: OnceCell<Result<Vec<u8>, io::ErrorKind>>,
}

impl compose::Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path != Path::new(STDIN) {
            let mut content = Vec::new();
            // Devices have no end.
            std::fs::File::open(path)?.take(LARGEST).read_to_end(&mut content)?;
            return Ok(content);
        }
        let read = || {
            let mut content = Vec::new();
            let mut stdin = io::stdin().lock().take(LARGEST);
            stdin.read_to_end(&mut content).map(|_| content).map_err(|error| error.kind())
        };
        self.stdin.get_or_init(read).clone().map_err(io::Error::from)
    }
}

impl Sources {
    /// Says what there is to complain about, each thing once with its place, and how many errors there are. Warnings are left out where
    /// only what must be said is wanted.
    pub(crate) fn complain(&self, diagnostics: &[compose::Diagnostic], out: &Output) -> Errors {
        for remark in &self.remarks {
            out.say(&format!("{}: {remark}", out.paint(Color::Pending, "warning")));
        }
        let mut errors = Errors::default();
        for diagnostic in self.early.iter().chain(diagnostics) {
            if diagnostic.is_error() {
                errors.count += 1;
                errors.unsupported += usize::from(diagnostic.complaint == compose::Complaint::Unsupported);
            } else if out.quiet {
                continue;
            }
            out.must_say(&painted(&self.relative(diagnostic.clone()), out));
            out.must_say("");
        }
        errors
    }

    /// With the names of files as one would write them here.
    fn relative(&self, mut diagnostic: compose::Diagnostic) -> compose::Diagnostic {
        let places = diagnostic.place.iter_mut();
        for place in places.chain(diagnostic.related.iter_mut().map(|related| &mut related.place)) {
            if place.file == Path::new(STDIN) {
                place.file = "<standard input>".into();
            } else if let Ok(relative) = place.file.strip_prefix(&self.here) {
                place.file = relative.to_owned();
            }
        }
        diagnostic
    }
}

/// How many complaints are errors.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Errors {
    count: usize,
    /// Those that can be allowed.
    unsupported: usize,
}

impl Errors {
    /// Ends a command if there are any; `then` is what follows from that.
    pub(crate) fn end(self, then: &str) -> Result<()> {
        let what = match self.count {
            0 => return Ok(()),
            1 => "1 error".to_owned(),
            count => format!("{count} errors"),
        };
        let message = format!("the Compose file has {what}{then}");
        match self.unsupported {
            0 => bail!(message),
            unsupported if unsupported == self.count => bail!(hint(
                message,
                "`--allow-unsupported` leaves out what a cluster cannot honour, with a warning for each"
            )),
            unsupported => bail!(hint(
                message,
                format!(
                    "{unsupported} of them would be warnings with `--allow-unsupported`, which leaves out what a cluster cannot honour"
                )
            )),
        }
    }
}

/// A complaint in colours: what it is, where, and what to do.
fn painted(diagnostic: &compose::Diagnostic, out: &Output) -> String {
    let text = diagnostic.to_string();
    if !out.color {
        return text;
    }
    let color = if diagnostic.is_error() { Color::Bad } else { Color::Pending };
    let paint = |(number, line): (usize, &str)| match line.split_once(':') {
        Some((word, rest)) if number == 0 => {
            format!("{}:{}", out.paint(color, word), out.paint(Color::Strong, rest))
        }
        _ => match line.split_once(" = help: ") {
            Some((margin, help)) => format!("{margin} = {}: {help}", out.paint(Color::Good, "help")),
            None if line.trim_start().starts_with(['-', ':']) => out.paint(Color::Dim, line),
            None if line.ends_with('^') => {
                let (margin, marks) = line.split_at(line.find('^').unwrap_or_default());
                format!("{margin}{}", out.paint(color, marks))
            }
            None => line.to_owned(),
        },
    };
    text.lines().enumerate().map(paint).collect::<Vec<_>>().join("\n")
}

/// What the app's files make of it. Complaints are printed, each with its place, and errors end it.
pub(crate) fn load_all(files: &Files, allow_unsupported: bool, out: &Output) -> Result<compose::Loaded> {
    let mut sources = sources(files)?;
    sources.request.allow_unsupported = allow_unsupported;
    let loaded = compose::load(&sources.request, &sources.disk);
    sources.complain(&loaded.diagnostics, out).end("; nothing was changed")?;
    Ok(loaded)
}

/// The app's name, for commands that need nothing else of its files.
pub(crate) fn app_name(files: &Files, out: &Output) -> Result<AppName> {
    let from_environment = || env("COMPOSE_PROJECT_NAME");
    if let Some(name) = files.project_name.clone().or_else(from_environment).filter(|name| !name.is_empty()) {
        return Ok(name.parse()?);
    }
    let mut sources = match sources(files) {
        Ok(sources) => sources,
        Err(error) if files.file.is_empty() && !error.is::<Usage>() => {
            bail!(hint(
                format!("{error}, so it is not clear which app is meant"),
                "go to the folder of the app's Compose file, or name the app with `-p`; `wharf app ls` lists apps"
            ));
        }
        Err(error) => return Err(error),
    };
    // What such a command needs is the name: complaints about the rest are `up`'s to make.
    sources.request.no_consistency = true;
    sources.request.no_env_resolution = true;
    sources.request.no_normalize = true;
    let projected = compose::project(&sources.request, &sources.disk);
    let Some(project) = projected.project else {
        let quiet = Output { quiet: true, ..*out };
        sources.complain(&projected.diagnostics, &quiet).end("")?;
        bail!("the Compose file gives the app no name");
    };
    Ok(project.name().parse()?)
}
