//! Files in memory, and what the loader says about them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use wharf_compose::{Loaded, Project, Projected, Request, load, project};
use wharf_model::{AppSpec, ServiceSpec};

/// A folder `/app` with files.
#[derive(Clone, Default)]
pub(crate) struct Folder {
    files: BTreeMap<PathBuf, Vec<u8>>,
    pub(crate) request: Request,
}

impl Folder {
    /// With one Compose file, which is loaded.
    pub(crate) fn with(compose: &str) -> Self {
        let mut folder = Self::default();
        folder.request.files.push("/app/compose.yaml".into());
        folder.file("compose.yaml", compose)
    }
    pub(crate) fn file(mut self, name: &str, content: &str) -> Self {
        self.files.insert(PathBuf::from("/app").join(name), content.as_bytes().to_vec());
        self
    }
    /// With one more Compose file that is loaded after the others.
    pub(crate) fn and(mut self, name: &str, content: &str) -> Self {
        self.request.files.push(PathBuf::from("/app").join(name));
        self.file(name, content)
    }
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.request.environment.insert(name.to_owned(), value.to_owned());
        self
    }
    pub(crate) fn profile(mut self, name: &str) -> Self {
        self.request.profiles.push(name.to_owned());
        self
    }
    pub(crate) fn load(&self) -> Loaded {
        load(&self.request, &self.files)
    }
    pub(crate) fn projected(&self) -> Projected {
        project(&self.request, &self.files)
    }
    /// The normal form; fails with the complaints where there is none.
    pub(crate) fn project(&self) -> Project {
        match self.projected().into_result() {
            Ok((project, _)) => project,
            Err(refused) => panic!("{refused}"),
        }
    }
    /// What a file contains.
    pub(crate) fn text(&self, name: &str) -> String {
        let content = self.files[&PathBuf::from("/app").join(name)].clone();
        String::from_utf8(content).unwrap()
    }
    /// Every complaint as text.
    pub(crate) fn complaints(&self) -> String {
        let complaints: Vec<String> = self.load().diagnostics.iter().map(ToString::to_string).collect();
        complaints.join("\n")
    }
    /// The app; fails with the complaints where there is none.
    pub(crate) fn app(&self) -> AppSpec {
        match self.load().into_result() {
            Ok((app, _)) => app,
            Err(refused) => panic!("{refused}"),
        }
    }
    /// The service `web` of the app.
    pub(crate) fn web(&self) -> ServiceSpec {
        self.app().services.remove(&"web".parse().unwrap()).unwrap()
    }
}

/// The service `web`, of these lines and an image.
pub(crate) fn web(lines: &str) -> Folder {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    Folder::with(&format!("services:\n  web:\n    image: i\n{lines}"))
}
