//! Reads Compose files into the model: files in, an app out; every complaint with file, line and key.
//!
//! Nothing here is asynchronous, and nothing touches the outside but the [`Files`] that are handed in. Nothing is
//! silently ignored: a key is honoured, refused with a reason, or unknown. All problems are reported at once. No input
//! makes the loader panic, loop, or take memory without bound.
//!
//! The way of a file: `yaml` (text to a tree that knows its lines) → `interpolate` → `shape` (every key and kind, against
//! the tables in `shapes`) → `canonical` (short forms become long) → `project` (`include`, `extends`) → `merge` →
//! `typed` (meaning, references, what a cluster can honour) or `normal` (the reference's normal form).

mod aliyun;
mod canonical;
mod contradictions;
mod diagnostic;
mod dotenv;
mod interpolate;
mod load;
mod merge;
mod node;
mod normal;
mod project;
mod quantity;
pub mod reference;
pub mod schema;
mod shape;
mod shapes;
mod short;
mod typed;
mod words;
mod yaml;

pub use diagnostic::{Complaint, Diagnostic, Place, Related, Severity};
pub use load::{Files, Loaded, Refused, Request, load, with_env_files};
pub use normal::{Project, Projected, project};
