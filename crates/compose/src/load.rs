//! The one entrance: a request in, an app and every complaint out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use wharf_model::{AppName, AppSpec};

use crate::canonical::clean;
use crate::diagnostic::{Complaint, Diagnostic, Key, Report};
use crate::interpolate::substitute;
use crate::project::{Assembly, Environment};
use crate::typed;

/// Reads files; the loader touches nothing else of the outside. An implementation may refuse paths.
pub trait Files {
    /// The content of a file. A file that does not exist is [`io::ErrorKind::NotFound`].
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// Files in memory, by path.
impl Files for BTreeMap<PathBuf, Vec<u8>> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What to load, and with what.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The Compose files in the order in which they override each other. Relative ones are relative to what
    /// [`Files`] takes them to be.
    pub files: Vec<PathBuf>,
    /// Where relative paths begin; the folder of the first file if absent. Should be absolute.
    pub project_directory: Option<PathBuf>,
    /// Wins over `name:` in the files.
    pub project_name: Option<String>,
    /// Active profiles; `*` is all.
    pub profiles: Vec<String>,
    /// The variables of the environment.
    pub environment: BTreeMap<String, String>,
    /// Files with further variables; `.env` of the project directory, if there is one, where this is empty.
    pub env_files: Vec<PathBuf>,
    /// Makes what a cluster cannot honour a warning; it is then left out.
    pub allow_unsupported: bool,
}

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The app; there is one exactly if no complaint is an error.
    pub app: Option<AppSpec>,
    /// Every complaint, by file and line.
    pub diagnostics: Vec<Diagnostic>,
}

impl Loaded {
    /// The app and the warnings, or everything that is wrong.
    pub fn into_result(self) -> Result<(AppSpec, Vec<Diagnostic>), Refused> {
        match self.app {
            Some(app) => Ok((app, self.diagnostics)),
            None => Err(Refused { diagnostics: self.diagnostics }),
        }
    }
}

/// Files that cannot be loaded. Prints every complaint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Errors, and the warnings beside them.
    pub diagnostics: Vec<Diagnostic>,
}
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            write!(f, "{diagnostic}\n\n")?;
        }
        let errors = self.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
        let plural = if errors == 1 { "" } else { "s" };
        write!(f, "{errors} error{plural} in the Compose files")
    }
}
impl std::error::Error for Refused {}

/// Loads an app from Compose files. Never panics and never does I/O except through `files`; the same request and
/// files give the same answer.
pub fn load(request: &Request, files: &dyn Files) -> Loaded {
    let mut assembly = Assembly::new(files, Report::new(request.allow_unsupported));
    let app = attempt(request, &mut assembly);
    let app = app.filter(|_| assembly.report.errors() == 0);
    Loaded { app, diagnostics: assembly.report.finish() }
}

fn attempt(request: &Request, assembly: &mut Assembly<'_>) -> Option<AppSpec> {
    if request.files.is_empty() {
        assembly
            .report
            .general(Complaint::Unreadable, "no Compose file is given")
            .hint("name one, or run where a `compose.yaml` is");
        return None;
    }
    let files: Vec<PathBuf> = request.files.iter().map(|path| clean(path)).collect();
    let folder = match &request.project_directory {
        Some(folder) => clean(folder),
        None => files[0].parent().map(clean).unwrap_or_default(),
    };
    let mut environment = request.environment.clone();
    if request.env_files.is_empty() {
        assembly.add_default_env_file(&folder, &mut environment);
    } else {
        let paths: Vec<_> = request.env_files.iter().map(|path| (path.clone(), None)).collect();
        assembly.add_env_files(&paths, &mut environment);
    }
    let name = app_name(request, assembly, &files, &folder, &environment);
    if let Some(name) = &name {
        environment.insert("COMPOSE_PROJECT_NAME".to_owned(), name.as_str().to_owned());
    }
    let tree = assembly.whole(&files, &folder, &environment);
    let Some(tree) = tree else {
        if assembly.report.errors() == 0 {
            assembly
                .report
                .general(Complaint::MissingKey, format!("`{}` defines nothing", files[0].display()))
                .hint("a Compose file has at least one service under `services`");
        }
        return None;
    };
    let profiles: BTreeSet<String> = request.profiles.iter().cloned().collect();
    typed::app(assembly, &tree, name, &profiles, &environment)
}

/// The given name, or `name:`, or one made of the folder's.
fn app_name(
    request: &Request,
    assembly: &mut Assembly<'_>,
    files: &[PathBuf],
    folder: &Path,
    environment: &Environment,
) -> Option<AppName> {
    if let Some(given) = &request.project_name {
        return match given.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                assembly.report.general(Complaint::InvalidValue, error.to_string());
                None
            }
        };
    }
    if let Some(node) = assembly.given_name(files) {
        let lookup = |name: &str| environment.get(name).cloned();
        let written = node.as_str().unwrap_or_default();
        // What cannot be substituted is complained about when the whole file is.
        let Ok(text) = substitute(written, &lookup) else { return None };
        if !text.text.is_empty() {
            return match text.text.parse() {
                Ok(name) => Some(name),
                Err(error) => {
                    let key = Key::Root.field("name");
                    assembly.report.error(Complaint::InvalidValue, node.span, &key, error.to_string());
                    None
                }
            };
        }
    }
    let base = folder.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let legal = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    let normal: String = base.chars().filter(legal).collect();
    let normal: String = normal.trim_start_matches(['_', '-']).chars().take(63).collect();
    match normal.parse() {
        Ok(name) => Some(name),
        Err(_) => {
            assembly
                .report
                .general(
                    Complaint::MissingKey,
                    format!("the folder's name `{base}` gives no name for the app"),
                )
                .hint("write `name: …` at the top of the file");
            None
        }
    }
}
