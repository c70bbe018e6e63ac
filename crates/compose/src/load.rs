//! The one entrance: a request in, an app and every complaint out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use wharf_model::{AppName, AppSpec, BuildContext, BuildSpec, ServiceName};

use crate::canonical::clean;
use crate::diagnostic::{Complaint, Diagnostic, Key, Report};
use crate::interpolate::substitute;
use crate::node::Node;
use crate::normal;
use crate::project::{Assembly, Environment, Options};
use crate::shape::{Shape, forget_extensions};
use crate::shapes;
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
    /// The folder that no `include` may leave, neither by `..` nor by an absolute path; the project directory if absent.
    /// Files that the request or other keys name are read wherever they are, as far as [`Files`] permits.
    pub root: Option<PathBuf>,
    /// Makes what a cluster cannot honour a warning; it is then left out.
    pub allow_unsupported: bool,
    /// For [`project`](crate::project): only these services, and those they depend on; all where this is empty. A service
    /// that is named here is active whatever its profiles.
    pub services: Vec<String>,
    /// For [`project`](crate::project): leaves variables as they are written. Then all services are active, and nothing that
    /// depends on values is looked at.
    pub no_interpolate: bool,
    /// For [`project`](crate::project): leaves what is understood unwritten.
    pub no_normalize: bool,
    /// For [`project`](crate::project): leaves relative paths relative.
    pub no_path_resolution: bool,
    /// For [`project`](crate::project): does not look for contradictions.
    pub no_consistency: bool,
    /// For [`project`](crate::project): leaves `env_file` as it is.
    pub no_env_resolution: bool,
}

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The app; there is one exactly if no complaint is an error.
    pub app: Option<AppSpec>,
    /// What the app's services with `build` are built from; their images in `app` have names without versions.
    pub builds: BTreeMap<ServiceName, BuildSpec>,
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
    let mut builds = std::mem::take(&mut assembly.builds);
    for build in builds.values_mut() {
        if let BuildContext::Folder(folder) = &mut build.context
            && folder.is_empty()
        {
            let first = || request.files.first()?.parent().map(clean);
            let base = request.project_directory.clone().or_else(first).unwrap_or_default();
            *folder = base.to_string_lossy().into_owned();
        }
    }
    Loaded { app, builds, diagnostics: assembly.report.finish() }
}

fn attempt(request: &Request, assembly: &mut Assembly<'_>) -> Option<AppSpec> {
    let Prepared { mut tree, name, environment, profiles } = prepare(request, assembly, true)?;
    let name = name.and_then(|name| match name.parse::<AppName>() {
        Ok(name) => Some(name),
        Err(error) => {
            assembly
                .report
                .general(Complaint::InvalidValue, error.to_string())
                .hint("choose another with `name: …` or `--project-name`");
            None
        }
    });
    forget_extensions(&mut tree, &Shape::Map(&shapes::FILE));
    let app = typed::app(assembly, &tree, name, &profiles, &environment);
    // What the specification refuses is refused here too, whether or not its meaning was looked at above.
    if let Some(root) = tree.as_mapping() {
        assembly.report.only_other_lines();
        normal::check(&mut assembly.report, root, &normal::active_services(root, &profiles));
    }
    app
}

/// `environment` with the variables of these files, as [`load`] and [`project`](crate::project) read them; what it has
/// already wins. For callers that take from variables which files to load.
pub fn with_env_files(
    mut environment: BTreeMap<String, String>,
    env_files: &[PathBuf],
    files: &dyn Files,
) -> (BTreeMap<String, String>, Vec<Diagnostic>) {
    let mut assembly = Assembly::new(files, Report::new(true));
    let paths: Vec<_> = env_files.iter().map(|path| (path.clone(), None)).collect();
    assembly.add_env_files(&paths, &mut environment);
    (environment, assembly.report.finish())
}

/// Everything that the files say, before it is given a meaning.
pub(crate) struct Prepared {
    pub(crate) tree: Node,
    /// Absent where it was complained about.
    pub(crate) name: Option<String>,
    pub(crate) environment: Environment,
    pub(crate) profiles: BTreeSet<String>,
}

/// Reads and merges all files; complains about what is wrong with them.
pub(crate) fn prepare(request: &Request, assembly: &mut Assembly<'_>, interpolate: bool) -> Option<Prepared> {
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
    assembly.root = request.root.as_deref().map_or_else(|| folder.clone(), clean);
    let mut environment = request.environment.clone();
    if request.env_files.is_empty() {
        assembly.add_default_env_file(&folder, &mut environment);
    } else {
        let paths: Vec<_> = request.env_files.iter().map(|path| (path.clone(), None)).collect();
        assembly.add_env_files(&paths, &mut environment);
    }
    assembly.options =
        Options { interpolate, keep_paths: request.no_path_resolution.then(|| folder.clone()) };
    let name = app_name(request, assembly, &files, &folder, &environment);
    if let Some(name) = &name {
        environment.insert("COMPOSE_PROJECT_NAME".to_owned(), name.clone());
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
    Some(Prepared { tree, name, environment, profiles })
}

/// The given name, or `name:`, or one made of the folder's.
fn app_name(
    request: &Request,
    assembly: &mut Assembly<'_>,
    files: &[PathBuf],
    folder: &Path,
    environment: &Environment,
) -> Option<String> {
    let given = request.project_name.as_ref();
    let given = given.or_else(|| environment.get("COMPOSE_PROJECT_NAME")).filter(|name| !name.is_empty());
    if let Some(given) = given {
        let normal = normal_name(given);
        if normal == *given {
            return Some(normal);
        }
        let message = format!("`{given}` is not a name for a project");
        assembly.report.general(Complaint::InvalidValue, message).hint(format!(
            "use lower-case letters, digits, `-` and `_`, and start with a letter or a digit, such as `{}`",
            if normal.is_empty() { "app" } else { &normal }
        ));
        return None;
    }
    if let Some(node) = assembly.given_name(files) {
        let written = node.as_str().unwrap_or_default();
        let lookup = |name: &str| environment.get(name).cloned();
        let text = if !assembly.options.interpolate {
            written.to_owned()
        } else {
            // What cannot be substituted is complained about when the whole file is.
            substitute(written, &lookup).ok()?.text
        };
        let normal = normal_name(&text);
        if normal.is_empty() && !text.is_empty() {
            let key = Key::Root.field("name");
            let message = format!("`{text}` gives no name for the project");
            assembly
                .report
                .error(Complaint::InvalidValue, node.span, &key, message)
                .hint("use lower-case letters, digits, `-` and `_`");
            return None;
        }
        if !normal.is_empty() {
            return Some(normal);
        }
    }
    let base = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let normal = normal_name(&base);
    if normal.is_empty() {
        assembly
            .report
            .general(Complaint::MissingKey, format!("the folder's name `{base}` gives no name for the app"))
            .hint("write `name: …` at the top of the file");
        return None;
    }
    Some(normal)
}

/// In lower case, without what a name cannot have.
fn normal_name(text: &str) -> String {
    let legal = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    let kept: String = text.to_lowercase().chars().filter(legal).collect();
    kept.trim_start_matches(['_', '-']).to_owned()
}
