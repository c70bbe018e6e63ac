//! Assembles one tree out of all files: reads them, substitutes variables, follows `include` and `extends`, merges.
//!
//! Every file is checked and made canonical on its own, with its own base folder, before it meets another; so a
//! complaint always names the file and line where something was written, and paths are absolute before they are mixed.
//! Circles and runaway inclusion end in a complaint.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::string::FromUtf8Error;

use crate::canonical::{Base, canonical, clean, defaults, from_to};
use crate::diagnostic::{Complaint, Key, Report, Span};
use crate::dotenv;
use crate::interpolate;
use crate::load::Files;
use crate::merge;
use crate::node::{Entry, Mapping, Node, Tag, Value};
use crate::shape::{Shape, check, require};
use crate::shapes;
use crate::yaml;

/// Larger files are no Compose files: those of a thousand services have a tenth of it.
const LARGEST: usize = 4 << 20;
/// Larger files hold no variables: no program could be started with them.
const LARGEST_OF_VARIABLES: usize = 2 << 20;
/// How deep files include files, and services extend services.
const DEEPEST: usize = 32;
/// What the use of a file counts at least: it is looked for, and so is an env file beside it.
const LEAST_USED: usize = 16_000;
/// Bytes of files that may be used in all, so that small files cannot use large ones without end.
const MOST_USED: usize = 128 << 20;
/// Variables that all files of variables may give, counted for each service that uses them.
const MOST_VARIABLES: usize = 250_000;

/// What an included file may define.
const IMPORTED: [&str; 7] = ["services", "volumes", "networks", "secrets", "configs", "models", "jobs"];

pub(crate) type Environment = BTreeMap<String, String>;

/// Reads files and remembers them.
pub(crate) struct Assembly<'a> {
    pub(crate) report: Report,
    pub(crate) options: Options,
    /// What the services that are built are built from.
    pub(crate) builds: BTreeMap<wharf_model::ServiceName, wharf_model::BuildSpec>,
    pub(crate) files: &'a dyn Files,
    /// The project's folder.
    pub(crate) folder: PathBuf,
    /// What no `include` may leave.
    pub(crate) root: PathBuf,
    documents: HashMap<PathBuf, Option<Documents>>,
    including: Vec<PathBuf>,
    /// Bytes of files used so far; a file counts each time it is used.
    used: usize,
    /// Variables read from files so far.
    variables: usize,
}

/// What may be left undone.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) interpolate: bool,
    /// The folder that relative paths stay relative to.
    pub(crate) keep_paths: Option<PathBuf>,
}
impl Default for Options {
    fn default() -> Self {
        Self { interpolate: true, keep_paths: None }
    }
}

/// The documents of a file, and its number.
type Documents = (u16, Rc<Vec<Node>>);

/// What one group of files is read with.
struct Scope<'a> {
    environment: &'a Environment,
    base: Base,
}

/// How a file came into play.
#[derive(Clone, Copy)]
pub(crate) struct Reference<'k> {
    pub(crate) span: Span,
    pub(crate) key: &'k Key<'k>,
}

impl<'a> Assembly<'a> {
    pub(crate) fn new(files: &'a dyn Files, report: Report) -> Self {
        Self {
            report,
            options: Options::default(),
            builds: BTreeMap::new(),
            files,
            folder: PathBuf::new(),
            root: PathBuf::new(),
            documents: HashMap::new(),
            including: Vec::new(),
            used: 0,
            variables: 0,
        }
    }

    /// The text of a file of variables; complains where there is none.
    pub(crate) fn text(&mut self, path: &Path, reference: Option<Reference<'_>>) -> Option<String> {
        self.text_of(path, reference, LARGEST_OF_VARIABLES)
    }

    fn text_of(&mut self, path: &Path, reference: Option<Reference<'_>>, largest: usize) -> Option<String> {
        let too_much =
            || format!("`{}` and the files before it hold more than the loader accepts", path.display());
        if self.used > MOST_USED || self.variables > MOST_VARIABLES {
            self.unreadable(path, reference, too_much());
            return None;
        }
        let problem = match self.files.read(path) {
            Ok(bytes) if bytes.len() > largest => {
                format!("`{}` is too large: {} of at most {largest} bytes", path.display(), bytes.len())
            }
            Ok(bytes) if !self.may_use(bytes.len().max(LEAST_USED)) => too_much(),
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => return Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
                Err(error) => {
                    self.no_text(path, &error, reference);
                    return None;
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.missing(path, reference, &error);
                return None;
            }
            Err(error) => why_unread(path, &error),
        };
        self.unreadable(path, reference, problem);
        None
    }

    fn missing(&mut self, path: &Path, reference: Option<Reference<'_>>, error: &io::Error) {
        let problem = why_unread(path, error);
        match reference {
            Some(Reference { span, key }) => self.report.error(Complaint::Unreadable, span, key, problem),
            None => self.report.general(Complaint::Unreadable, problem),
        }
        .hint("check the path and where it begins, or make the file");
    }

    /// A file that is there, and of which nothing can be shown.
    fn unreadable(&mut self, path: &Path, reference: Option<Reference<'_>>, problem: String) {
        let (span, key) = match reference {
            Some(Reference { span, key }) => (span, key),
            None => {
                let file = self.report.add_source(path, "");
                (Span { file, line: 1, column: 1, length: 1 }, &Key::Root)
            }
        };
        self.report
            .error(Complaint::Unreadable, span, key, problem)
            .hint("name a text file of a usual size that can be read");
    }

    fn no_text(&mut self, path: &Path, error: &FromUtf8Error, reference: Option<Reference<'_>>) {
        // As in texts, a byte order mark is none of the characters.
        let mark =
            if error.as_bytes().starts_with("\u{feff}".as_bytes()) { '\u{feff}'.len_utf8() } else { 0 };
        let before = &error.as_bytes()[mark..error.utf8_error().valid_up_to()];
        let begin = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |index| index + 1);
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = String::from_utf8_lossy(&before[begin..]).chars().count() + 1;
        let problem = format!("`{}` is not UTF-8 text: line {line} has other bytes", path.display());
        let file = self.report.add_source(path, String::from_utf8_lossy(&error.as_bytes()[mark..]));
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let span = Span { file, line: small(line), column: small(column), length: 1 };
        self.report.error(Complaint::Unreadable, span, &Key::Root, problem).hint("save the file as UTF-8");
        if let Some(reference) = reference {
            self.report.relate(reference.span, "the file is named here");
        }
    }

    fn may_use(&mut self, bytes: usize) -> bool {
        self.used = self.used.saturating_add(bytes);
        self.used <= MOST_USED
    }

    /// Whether all of a file may be used once more; weighing it takes time as well, so it ends with the first that may not.
    fn may_use_again(&mut self, documents: &[Node]) -> bool {
        self.used <= MOST_USED && self.may_use(documents.iter().map(weight).sum::<usize>().max(LEAST_USED))
    }

    /// Whether a copy may be made; where too much was used before, nothing is counted any more.
    fn may_copy(&mut self, node: &Node) -> bool {
        self.used <= MOST_USED && self.may_use(weight(node))
    }

    /// The documents of a Compose file, as written.
    fn documents(&mut self, path: &Path, reference: Option<Reference<'_>>) -> Option<Documents> {
        if let Some(known) = self.documents.get(path) {
            return known.clone();
        }
        if self.report.is_full() {
            self.report.general(Complaint::Unreadable, "too many files").hint("include fewer files");
            return None;
        }
        let read = self.text_of(path, reference, LARGEST).and_then(|text| {
            let file = self.report.add_source(path, text);
            let documents = yaml::parse(&mut self.report, file)?;
            Some((file, Rc::new(documents)))
        });
        self.documents.insert(path.to_owned(), read.clone());
        read
    }

    /// The documents of a file to be changed. What is read but once is not copied: a file that was asked for by the request
    /// is seldom needed again, and is then read again.
    fn own_documents(&mut self, path: &Path, top: bool) -> Option<(u16, Vec<Node>)> {
        let again = self.documents.contains_key(path);
        let (file, documents) = self.documents(path, None)?;
        if top {
            self.documents.remove(path);
        } else if again && !self.may_use_again(&documents) {
            self.report
                .general(Complaint::Unreadable, format!("`{}` is used too often", path.display()))
                .hint("include it once");
            return None;
        }
        Some((file, Rc::try_unwrap(documents).unwrap_or_else(|shared| shared.as_ref().clone())))
    }

    /// The last `name:` the files give, with its place, before substitution.
    pub(crate) fn given_name(&mut self, files: &[PathBuf]) -> Option<Node> {
        let mut name = None;
        for path in files {
            let Some((_, documents)) = self.documents(path, None) else { continue };
            for document in documents.iter() {
                let found = document.as_mapping().and_then(|mapping| mapping.get("name"));
                name = found.filter(|node| node.as_str().is_some()).cloned().or(name);
            }
        }
        name
    }

    /// One canonical tree of all files, in which nothing that must be there is missing.
    pub(crate) fn whole(
        &mut self,
        files: &[PathBuf],
        folder: &Path,
        environment: &Environment,
    ) -> Option<Node> {
        folder.clone_into(&mut self.folder);
        let mut tree = self.load(files, folder, environment)?;
        require(&mut self.report, &mut tree, &Shape::Map(&shapes::FILE), &Key::Root, Span::default());
        Some(tree)
    }

    /// All files merged in order.
    fn load(&mut self, files: &[PathBuf], folder: &Path, environment: &Environment) -> Option<Node> {
        let home = environment.get("HOME").cloned();
        let written = self.options.keep_paths.as_ref().map(|top| from_to(top, folder));
        let scope = Scope { environment, base: Base { folder: folder.to_owned(), home, written } };
        let mut merged: Option<Node> = None;
        let mut unreadable = false;
        for path in files {
            let Some((file, documents)) = self.own_documents(path, self.including.is_empty()) else {
                unreadable = true;
                continue;
            };
            self.including.push(path.clone());
            for document in documents {
                let start = Span { file, line: 1, column: 1, length: 1 };
                let Some(tree) = self.document(document, start, path, &scope, merged.as_ref()) else {
                    continue;
                };
                merged = Some(match merged.take() {
                    Some(base) => merge::merge(&mut self.report, base, tree, &Key::Root),
                    None => tree,
                });
            }
            self.including.pop();
        }
        if unreadable {
            return None;
        }
        let mut tree = merged?;
        merge::settle(&mut tree);
        merge::enforce_unicity(&mut tree);
        defaults(&mut tree, &scope.base);
        Some(tree)
    }

    /// Checks one document and resolves what it includes and extends.
    fn document(
        &mut self,
        mut tree: Node,
        start: Span,
        path: &Path,
        scope: &Scope<'_>,
        before: Option<&Node>,
    ) -> Option<Node> {
        let lookup = |name: &str| scope.environment.get(name).cloned();
        if self.options.interpolate {
            interpolate::interpolate(&mut self.report, &mut tree, &Key::Root, &lookup);
        }
        if tree.is_null() {
            return None;
        }
        let shape = Shape::Map(&shapes::FILE);
        if tree.as_mapping().is_none() {
            let message = format!(
                "a Compose file must be a mapping with keys such as `services`, but this is {}",
                tree.kind()
            );
            let place = if tree.span.line > 0 { tree.span } else { start };
            self.report
                .error(Complaint::WrongType, place, &Key::Root, message)
                .hint("write `services:` at its top, and indent each service below");
            return None;
        }
        check(&mut self.report, &mut tree, &shape, &Key::Root, start);
        if let Some(version) = tree.as_mapping_mut().and_then(|mapping| mapping.remove("version")) {
            self.report
                .warn(
                    Complaint::Obsolete,
                    version.key,
                    &Key::Root.field("version"),
                    "`version` is obsolete and has no effect",
                )
                .hint("remove it");
        }
        canonical(&mut self.report, &mut tree, &scope.base);
        self.include(&mut tree, scope);
        self.extend_all(&mut tree, path, scope, before);
        Some(tree)
    }

    // --- include ---

    fn include(&mut self, tree: &mut Node, scope: &Scope<'_>) {
        let Some(root) = tree.as_mapping_mut() else { return };
        let Some(Entry { node: Node { value: Value::Sequence(items), .. }, .. }) = root.remove("include")
        else {
            return;
        };
        let key = Key::Root.field("include");
        // What is written here is merged over all that is included, not over each: its tags count once.
        let mut all = Mapping::default();
        for (index, item) in items.iter().enumerate() {
            let key = key.item(index);
            let Some(include) = item.as_mapping() else { continue };
            let Some(included) = self.included(include, item.span, &key, scope) else { continue };
            if let Value::Mapping(included) = included.value {
                self.import(&mut all, included);
            }
        }
        self.import(root, all);
    }

    fn included(&mut self, include: &Mapping, span: Span, key: &Key<'_>, scope: &Scope<'_>) -> Option<Node> {
        let texts = |name: &str| -> Vec<(String, Span)> {
            let items = include.get(name).and_then(Node::as_sequence).unwrap_or_default();
            items.iter().filter_map(|item| Some((item.as_str()?.to_owned(), item.span))).collect()
        };
        let paths = texts("path");
        if paths.is_empty() {
            self.report
                .error(Complaint::MissingKey, span, key, "an include needs `path`")
                .hint("name the file: `path: other.yaml`");
            return None;
        }
        let mut files = Vec::new();
        for (path, span) in &paths {
            if is_remote(path) {
                let message = format!("`{path}` is not on this machine, and Wharf fetches no files");
                self.report
                    .error(Complaint::Unreadable, *span, key, message)
                    .hint("copy the file beside this one and include that");
                return None;
            }
            files.push(self.within_root(path, *span, key, scope)?);
        }
        let place = paths[0].1;
        if let Some(path) = files.iter().find(|path| self.including.contains(path)) {
            let mut circle: Vec<String> = self
                .including
                .iter()
                .skip_while(|other| *other != path)
                .map(|p| p.display().to_string())
                .collect();
            circle.push(path.display().to_string());
            let message = format!("files include each other: {}", circle.join(" -> "));
            self.report
                .error(Complaint::Cycle, place, key, message)
                .hint("take what they share into a file of its own, and include that");
            return None;
        }
        if self.including.len() > DEEPEST {
            let message = format!("files include each other more than {DEEPEST} levels deep");
            self.report.error(Complaint::Cycle, place, key, message).hint("include the inner files directly");
            return None;
        }
        let folder = match include.get("project_directory").and_then(Node::as_str) {
            Some(folder) => scope.base.locate(folder),
            None => files[0].parent().map(Path::to_owned).unwrap_or_default(),
        };
        let mut environment = scope.environment.clone();
        let listed = texts("env_file");
        if include.contains("env_file") {
            let mut paths = Vec::new();
            for (path, span) in listed.into_iter().filter(|(path, _)| path != "/dev/null") {
                paths.push((self.within_root(&path, span, key, scope)?, Some(Reference { span, key })));
            }
            self.add_env_files(&paths, &mut environment);
        } else {
            self.add_default_env_file(&folder, &mut environment);
        }
        for path in &files {
            self.documents(path, Some(Reference { span: place, key }));
        }
        self.load(&files, &folder, &environment)
    }

    /// The file that an `include` names; complains where that leaves what includes may reach.
    fn within_root(&mut self, path: &str, span: Span, key: &Key<'_>, scope: &Scope<'_>) -> Option<PathBuf> {
        let located = scope.base.locate(path);
        if is_below(&self.root, &located) {
            return Some(located);
        }
        let message = format!("`{path}` leaves `{}`, which includes may not", self.root.display());
        self.report.error(Complaint::Unreadable, span, key, message).hint(
            "keep what belongs to a project in one folder or repository, or name the file with `-f` instead",
        );
        None
    }

    /// Takes what an included file defines; what is there already is merged over it, as if by a later file.
    fn import(&mut self, root: &mut Mapping, included: Mapping) {
        for (group, entry) in included {
            let Value::Mapping(members) = entry.node.value else { continue };
            // Extensions are a file's own.
            if !IMPORTED.contains(&group.as_str()) {
                continue;
            }
            if !root.contains(&group) {
                let empty = Node::new(entry.node.span, Value::Mapping(Mapping::default()));
                root.insert(&group, entry.key, empty);
            }
            let Some(own) = root.get_mut(&group).and_then(Node::as_mapping_mut) else { continue };
            let group_key = Key::Root.field(&group);
            for (name, member) in members {
                match own.entry_mut(&name) {
                    Some(over) if over.node.tag != Tag::Reset => {
                        let node = std::mem::replace(&mut over.node, Node::new(over.key, Value::Null));
                        let merged =
                            merge::merge(&mut self.report, member.node, node, &group_key.field(&name));
                        over.node = merged;
                    }
                    _ => own.insert(name, member.key, member.node),
                }
            }
        }
    }

    // --- extends ---

    fn extend_all(&mut self, tree: &mut Node, path: &Path, scope: &Scope<'_>, before: Option<&Node>) {
        let services = tree.as_mapping().and_then(|root| root.get("services")).and_then(Node::as_mapping);
        let Some(services) = services else { return };
        if !services.iter().any(|(_, entry)| extends(&entry.node).is_some()) {
            return;
        }
        let earlier = before
            .and_then(Node::as_mapping)
            .and_then(|root| root.get("services"))
            .and_then(Node::as_mapping);
        let mut resolved: Vec<(String, Node)> = Vec::new();
        for (name, entry) in services.iter() {
            if extends(&entry.node).is_some() {
                let mut chain = vec![(path.to_owned(), name.to_owned())];
                let source = Source { path, services, earlier };
                let node = self.extended(name, entry.node.clone(), &source, scope, &mut chain);
                resolved.push((name.to_owned(), node));
            }
        }
        let services = tree.as_mapping_mut().and_then(|root| root.get_mut("services"));
        let Some(services) = services.and_then(Node::as_mapping_mut) else { return };
        for (name, node) in resolved {
            if let Some(slot) = services.get_mut(&name) {
                *slot = node;
            }
        }
    }

    /// A service with what it extends merged in below it.
    fn extended(
        &mut self,
        name: &str,
        mut service: Node,
        source: &Source<'_>,
        scope: &Scope<'_>,
        chain: &mut Vec<(PathBuf, String)>,
    ) -> Node {
        let group = Key::Root.field("services");
        let service_key = group.field(name);
        let key = service_key.field("extends");
        let Some(entry) = service.as_mapping_mut().and_then(|mapping| mapping.remove("extends")) else {
            return service;
        };
        let Some(mapping) = entry.node.as_mapping() else { return service };
        let span = entry.place();
        let Some(wanted) = mapping.get("service") else {
            self.report
                .error(Complaint::MissingKey, span, &key, "`extends` needs `service`")
                .hint("name it: `extends: {service: NAME}`");
            return service;
        };
        let (Some(name), span) = (wanted.as_str(), wanted.span) else { return service };
        let wanted = Wanted { name, span, key: &key };
        let file = mapping.get("file").filter(|node| node.as_str().is_some_and(|text| !text.is_empty()));
        let base = match file {
            None => self.base_here(wanted, source, scope, chain),
            Some(file) => self.base_elsewhere(wanted, file, source, scope, chain),
        };
        let Some(base) = base else {
            // Complained about; a part of a service must not be taken for the whole.
            return Node::new(service.span, Value::Invalid);
        };
        let mut merged = merge::merge(&mut self.report, base, service, &service_key);
        if let Some(mapping) = merged.as_mapping_mut() {
            merge::unique_items(mapping);
        }
        merged
    }

    fn base_here(
        &mut self,
        wanted: Wanted<'_>,
        source: &Source<'_>,
        scope: &Scope<'_>,
        chain: &mut Vec<(PathBuf, String)>,
    ) -> Option<Node> {
        let Wanted { name, span, key } = wanted;
        if !self.enter(source.path, wanted, chain) {
            return None;
        }
        let found =
            source.services.get(name).or_else(|| source.earlier.and_then(|earlier| earlier.get(name)));
        let base = match found {
            Some(found) if !self.may_copy(found) => {
                self.report.error(Complaint::Unreadable, span, key, TOO_MUCH).hint(TOO_MUCH_HINT);
                None
            }
            Some(found) => Some(self.extended(name, found.clone(), source, scope, chain)),
            None => {
                let hint = self
                    .report
                    .did_you_mean(name, source.services.keys())
                    .unwrap_or_else(|| "name a service that the file has".to_owned());
                let message = format!("there is no service `{name}` to extend");
                self.report.error(Complaint::UnknownReference, span, key, message).hint(hint);
                None
            }
        };
        chain.pop();
        base.filter(|base| !base.is_invalid())
    }

    fn base_elsewhere(
        &mut self,
        wanted: Wanted<'_>,
        file: &Node,
        source: &Source<'_>,
        scope: &Scope<'_>,
        chain: &mut Vec<(PathBuf, String)>,
    ) -> Option<Node> {
        let text = file.as_str().unwrap_or_default();
        if is_remote(text) {
            let message = format!("`{text}` is not on this machine, and Wharf fetches no files");
            self.report
                .error(Complaint::Unreadable, file.span, wanted.key, message)
                .hint("copy the file beside this one and extend from that");
            return None;
        }
        let path = scope.base.locate(text);
        if path == source.path {
            return self.base_here(wanted, source, scope, chain);
        }
        if !self.enter(&path, wanted, chain) {
            return None;
        }
        let reference = Reference { span: file.span, key: wanted.key };
        let base = self
            .documents(&path, Some(reference))
            .and_then(|(file, documents)| self.service_of(&path, file, &documents, wanted, scope, chain));
        chain.pop();
        base.filter(|base| !base.is_invalid())
    }

    /// One service out of another file, checked and canonical; the rest of that file is left aside.
    fn service_of(
        &mut self,
        path: &Path,
        file: u16,
        documents: &[Node],
        wanted: Wanted<'_>,
        scope: &Scope<'_>,
        chain: &mut Vec<(PathBuf, String)>,
    ) -> Option<Node> {
        let Wanted { name: wanted, span, key } = wanted;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        let inner = Scope { environment: scope.environment, base: scope.base.elsewhere(folder) };
        let groups = || {
            let roots = documents.iter().filter_map(Node::as_mapping);
            roots.filter_map(|root| root.get("services").and_then(Node::as_mapping))
        };
        if !self.may_use(documents.len()) {
            self.report.error(Complaint::Unreadable, span, key, TOO_MUCH).hint(TOO_MUCH_HINT);
            return None;
        }
        if !groups().any(|services| services.contains(wanted)) {
            let hint = self.report.did_you_mean(wanted, groups().flat_map(Mapping::keys));
            let hint = hint.unwrap_or_else(|| "name a service that the file has".to_owned());
            let message = format!("`{}` has no service `{wanted}` to extend", path.display());
            self.report.error(Complaint::UnknownReference, span, key, message).hint(hint);
            return None;
        }
        // Only what is needed is looked at: the service itself, and what it extends in the same file.
        let find = |name: &str| groups().filter_map(|services| services.entry(name)).collect::<Vec<_>>();
        let needed = needed_services(&find, wanted);
        let start = Span { file, line: 1, column: 1, length: 1 };
        let mut merged: Option<Node> = None;
        for group in groups() {
            let mut services = Mapping::default();
            for name in &needed {
                let Some(entry) = group.entry(name) else { continue };
                if !self.may_copy(&entry.node) {
                    self.report.error(Complaint::Unreadable, span, key, TOO_MUCH).hint(TOO_MUCH_HINT);
                    return None;
                }
                services.insert(name, entry.key, entry.node.clone());
            }
            let mut root = Mapping::default();
            root.insert("services", start, Node::new(start, Value::Mapping(services)));
            let mut tree = Node::new(start, Value::Mapping(root));
            let lookup = |name: &str| inner.environment.get(name).cloned();
            if self.options.interpolate {
                interpolate::interpolate(&mut self.report, &mut tree, &Key::Root, &lookup);
            }
            check(&mut self.report, &mut tree, &Shape::Map(&shapes::FILE), &Key::Root, start);
            canonical(&mut self.report, &mut tree, &inner.base);
            merged = Some(match merged.take() {
                Some(base) => merge::merge(&mut self.report, base, tree, &Key::Root),
                None => tree,
            });
        }
        let services = merged.as_ref()?.as_mapping()?.get("services")?.as_mapping()?;
        let source = Source { path, services, earlier: None };
        let found = services.get(wanted)?.clone();
        Some(self.extended(wanted, found, &source, &inner, chain))
    }

    /// Steps into a service that is extended, unless that closes a circle.
    fn enter(&mut self, path: &Path, wanted: Wanted<'_>, chain: &mut Vec<(PathBuf, String)>) -> bool {
        let Wanted { name: service, span: place, key } = wanted;
        let step = (path.to_owned(), service.to_owned());
        if let Some(start) = chain.iter().position(|other| *other == step) {
            let mut names: Vec<&str> = chain[start..].iter().map(|(_, name)| name.as_str()).collect();
            names.push(service);
            let message = format!("services extend each other: {}", names.join(" -> "));
            self.report
                .error(Complaint::Cycle, place, key, message)
                .hint("take what they share into a service of its own, and extend that");
            return false;
        }
        if chain.len() > DEEPEST {
            let message = format!("services extend each other more than {DEEPEST} levels deep");
            self.report
                .error(Complaint::Cycle, place, key, message)
                .hint("extend the inner services directly");
            return false;
        }
        chain.push(step);
        true
    }

    // --- environment ---

    /// Adds the variables of files. Of several values the last one counts, but those that are there win; a file may use
    /// the variables of those before it.
    pub(crate) fn add_env_files(
        &mut self,
        paths: &[(PathBuf, Option<Reference<'_>>)],
        environment: &mut Environment,
    ) {
        let mut found = Environment::new();
        for (path, reference) in paths {
            let Some(text) = self.text(path, *reference) else { continue };
            let outer = |name: &str| environment.get(name).cloned();
            let read = self.variables(path, text, dotenv::Format::Compose, &outer, &found);
            found.extend(read);
        }
        for (name, value) in found {
            environment.entry(name).or_insert(value);
        }
    }

    /// Adds the variables of `.env`, if there is one.
    pub(crate) fn add_default_env_file(&mut self, folder: &Path, environment: &mut Environment) {
        let path = clean(&folder.join(".env"));
        let missing = match self.files.read(&path) {
            Ok(_) => false,
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory)
            }
        };
        if !missing {
            self.add_env_files(&[(path, None)], environment);
        }
    }

    /// Adds the variables that the files of a canonical `env_file` or `label_file` give. A later file wins, and may use
    /// those of earlier ones; `outer` comes before all of them.
    pub(crate) fn read_variables(
        &mut self,
        files: &Node,
        key: &Key<'_>,
        outer: interpolate::Lookup<'_>,
        known: &mut Environment,
    ) {
        for (index, item) in files.as_sequence().unwrap_or_default().iter().enumerate() {
            let key = key.item(index);
            let (path, required, format) = match &item.value {
                Value::String(path) => (path.as_str(), true, None),
                Value::Mapping(mapping) => {
                    let Some(path) = mapping.get("path").and_then(Node::as_str) else { continue };
                    let optional =
                        matches!(mapping.get("required"), Some(Node { value: Value::Bool(false), .. }));
                    (path, !optional, mapping.entry("format"))
                }
                _ => continue,
            };
            let path = Path::new(path);
            let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
            if !required && self.files.read(path).is_err_and(|error| absent(&error)) {
                continue;
            }
            let format = match format.and_then(|entry| Some((entry, entry.node.as_str()?))) {
                None | Some((_, "" | ".env")) => dotenv::Format::Compose,
                Some((_, "raw")) => dotenv::Format::Raw,
                Some((entry, other)) => {
                    let message = format!("`{other}` is not a format of env files");
                    self.report
                        .error(Complaint::InvalidValue, entry.place(), &key.field("format"), message)
                        .hint("leave it out, or write `raw`");
                    continue;
                }
            };
            let reference = Reference { span: item.span, key: &key };
            let Some(text) = self.text(path, Some(reference)) else { continue };
            let read = self.variables(path, text, format, outer, known);
            known.extend(read);
        }
    }

    /// Reads variables out of text, complaining about what cannot be read.
    fn variables(
        &mut self,
        path: &Path,
        text: String,
        format: dotenv::Format,
        outer: interpolate::Lookup<'_>,
        earlier: &Environment,
    ) -> Vec<(String, String)> {
        let parsed = dotenv::parse(&text, format, outer, earlier);
        match parsed {
            Ok(variables) if variables.unset.is_empty() => {
                self.variables += variables.entries.len();
                variables.entries
            }
            Ok(variables) => {
                self.variables += variables.entries.len();
                let file = self.report.add_source(path, text);
                for (name, line) in &variables.unset {
                    let length =
                        u32::try_from(self.report.line(file, *line).chars().count()).unwrap_or(u32::MAX);
                    let span = Span { file, line: *line, column: 1, length };
                    let message =
                        format!("The \"{name}\" variable is not set. Defaulting to a blank string.");
                    self.report.warn(Complaint::UnsetVariable, span, &Key::Root, message);
                }
                variables.entries
            }
            Err(fault) => {
                let file = self.report.add_source(path, text);
                let span = Span { file, line: fault.line, column: fault.column, length: 1 };
                self.report.error(Complaint::Syntax, span, &Key::Root, fault.message).hint(fault.hint);
                Vec::new()
            }
        }
    }
}

/// A service that is to be extended, and where that is said.
#[derive(Clone, Copy)]
struct Wanted<'k> {
    name: &'k str,
    span: Span,
    key: &'k Key<'k>,
}

/// Where a service that extends comes from.
struct Source<'a> {
    path: &'a Path,
    services: &'a Mapping,
    /// The services of files before this one.
    earlier: Option<&'a Mapping>,
}

fn extends(service: &Node) -> Option<&Node> {
    service.as_mapping()?.get("extends").filter(|node| node.tag != Tag::Reset)
}

const TOO_MUCH: &str = "services extend each other to more than the loader accepts";
const TOO_MUCH_HINT: &str = "write what they share once, under an anchor or in fewer services";

/// About how many bytes a copy takes.
fn weight(node: &Node) -> usize {
    const ONE: usize = 300;
    match &node.value {
        Value::Sequence(items) => ONE + items.iter().map(weight).sum::<usize>(),
        Value::Mapping(mapping) => {
            ONE + mapping.iter().map(|(key, entry)| key.len() + weight(&entry.node)).sum::<usize>()
        }
        Value::String(text) => ONE + text.len(),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Invalid => ONE,
    }
}

/// A service and what it extends without naming a file, all the way down.
fn needed_services<'n>(find: &dyn Fn(&str) -> Vec<&'n Entry>, wanted: &str) -> Vec<String> {
    let mut needed = vec![wanted.to_owned()];
    let mut next = 0;
    // A longer chain is refused where it is followed.
    while let Some(name) = needed.get(next).filter(|_| next <= DEEPEST) {
        next += 1;
        for extends in find(name).into_iter().filter_map(|entry| extends(&entry.node)) {
            let base = match &extends.value {
                Value::String(text) => Some(text.clone()),
                Value::Mapping(mapping) => mapping.get("service").and_then(Node::scalar_text),
                _ => None,
            };
            if let Some(base) = base
                && !needed.contains(&base)
            {
                needed.push(base);
            }
        }
    }
    needed
}

/// Whether a path without `..` is a folder or in it.
fn is_below(folder: &Path, path: &Path) -> bool {
    if folder == Path::new(".") {
        return path.is_relative() && !path.starts_with("..");
    }
    path.starts_with(folder)
}

/// Why a file could not be read, for people.
pub(crate) fn why_unread(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no file `{path}`"),
        io::ErrorKind::IsADirectory => format!("`{path}` is a folder, not a file"),
        _ => format!("`{path}` cannot be read: {error}"),
    }
}

fn is_remote(path: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "oci://", "github.com/", "git@"]
        .iter()
        .any(|prefix| path.starts_with(prefix))
}
