//! JSON Schemas for editors, made from the tables in `shapes`, and the reference of `x-wharf`.
//!
//! - What the loader takes is valid by the schema; what the schema refuses the loader refuses. The loader knows more: ranges,
//!   references, what excludes what.
//! - Every key of `x-wharf` has a line in `schema/words.rs`; it is the schema's description and the reference's text.
//! - Values may be variables: wherever a number or a word may stand, so may text with `$`.

use serde_json::{Map, Value, json};

use crate::shape::{Object, Shape};
use crate::shapes;

mod words;

pub use words::{Section, sections};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Text in which a variable is substituted.
const VARIABLE: &str = r"\$";
const LENGTH_OF_TIME: &str = r"^\s*(0|([0-9.]+\s*(ns|us|µs|μs|ms|s|m|h|d|w))+)\s*$|\$";

/// Each setting that is understood and not carried out by this version, and what to write instead.
pub fn not_carried_out() -> impl Iterator<Item = (&'static str, &'static str)> {
    crate::typed::not_carried_out()
}

/// The schema of a whole Compose file.
pub fn file() -> Value {
    let mut schema = Definitions::default();
    let root = schema.object(&shapes::FILE);
    schema.finish("A Compose file for Wharf", &root)
}

/// The schema of what stands behind `x-wharf`: in a service (`#/$defs/x-wharf`), at the top level of a file
/// (`#/$defs/x-wharf-of-a-file`), and in a network (`#/$defs/x-wharf-of-a-network`).
pub fn wharf() -> Value {
    let mut schema = Definitions::default();
    let service = schema.object(&shapes::WHARF);
    let app = schema.object(&shapes::WHARF_APP);
    let network = schema.object(&shapes::WHARF_NETWORK);
    schema.finish("Wharf's own keys in a Compose file", &json!({ "anyOf": [service, app, network] }))
}

/// Objects by their name in the schema, each once.
#[derive(Default)]
struct Definitions {
    named: Map<String, Value>,
    known: Vec<(*const Object, String)>,
}

impl Definitions {
    fn finish(self, title: &str, root: &Value) -> Value {
        let mut schema = json!({ "$schema": DIALECT, "title": title });
        if let (Some(schema), Some(root)) = (schema.as_object_mut(), root.as_object()) {
            schema.extend(root.clone());
            schema.insert("$defs".to_owned(), Value::Object(self.named));
        }
        schema
    }

    /// A reference to an object's definition, which is made the first time.
    fn object(&mut self, object: &'static Object) -> Value {
        self.definition(object, &[], &[])
    }

    /// A job: what a service is, with triggers and without what keeps a service running.
    fn job(&mut self, object: &'static Object) -> Value {
        self.definition(object, &shapes::NOT_IN_JOBS, &[("triggers", &shapes::TRIGGERS)])
    }

    /// An object without some of its keys, and with others.
    fn definition(
        &mut self,
        object: &'static Object,
        without: &[&str],
        with: &[(&str, &'static Object)],
    ) -> Value {
        let id = std::ptr::from_ref(object);
        if let Some((_, name)) = self.known.iter().find(|(other, _)| *other == id) {
            return reference(name);
        }
        let name = self.free_name(object.what);
        self.known.push((id, name.clone()));
        let mut properties = Map::new();
        for (key, shape) in object.keys.iter().filter(|(key, _)| !without.contains(key)) {
            properties.insert((*key).to_owned(), self.described(object, key, shape));
        }
        for (key, object) in with {
            properties.insert((*key).to_owned(), self.object(object));
        }
        self.define(&name, &properties, object);
        reference(&name)
    }

    fn define(&mut self, name: &str, properties: &Map<String, Value>, object: &Object) {
        let mut definition = json!({
            "type": "object",
            "properties": properties,
            "patternProperties": { "^x-": {} },
            "additionalProperties": false,
        });
        // A Compose file may leave to another file what must be there in the end; `x-wharf` is rarely spread.
        if !object.required.is_empty() && words::is_own(object) {
            definition["required"] = json!(object.required);
        }
        self.named.insert(name.to_owned(), definition);
    }

    /// "`tls`" → `tls`, "a route" → `route`; a number where two are called the same.
    fn free_name(&self, what: &str) -> String {
        let plain: String = what.chars().filter(|c| *c != '`' && *c != '\'').collect();
        let plain = plain.strip_prefix("a ").or_else(|| plain.strip_prefix("an ")).unwrap_or(&plain);
        let slug = plain.replace(' ', "-");
        let taken = |name: &str| self.known.iter().any(|(_, other)| other == name);
        let numbered = (2..).map(|number| format!("{slug}-{number}"));
        std::iter::once(slug.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(slug)
    }

    fn described(&mut self, object: &'static Object, key: &str, shape: &'static Shape) -> Value {
        let mut schema = self.shape(shape);
        let text = words::of(object, key);
        if let (Some(text), Some(schema)) = (text, schema.as_object_mut()) {
            schema.insert("description".to_owned(), text.into());
        }
        schema
    }

    fn shape(&mut self, shape: &'static Shape) -> Value {
        match shape {
            Shape::Any => json!({}),
            Shape::Text => json!({ "type": "string" }),
            Shape::TextOrNumber => json!({ "type": ["string", "number"] }),
            Shape::Scalar => json!({ "type": ["string", "number", "boolean", "null"] }),
            Shape::Bool => json!({ "type": ["boolean", "string"] }),
            Shape::Int => json!({ "type": ["integer", "string"] }),
            Shape::Number | Shape::Size => json!({ "type": ["number", "string"] }),
            Shape::Duration => json!({ "type": "string", "pattern": LENGTH_OF_TIME }),
            Shape::Word(words) => {
                json!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": VARIABLE }] })
            }
            Shape::List(inner) => json!({ "type": "array", "items": self.shape(inner) }),
            Shape::Map(object) => self.object(object),
            Shape::Job(object) => self.job(object),
            Shape::MapOf(inner) => json!({ "type": "object", "additionalProperties": self.shape(inner) }),
            Shape::Named(_, inner) => json!({
                "type": "object",
                "propertyNames": { "pattern": "^[A-Za-z0-9._-]+$" },
                "additionalProperties": self.shape(inner),
            }),
            Shape::OrNull(inner) => json!({ "anyOf": [self.shape(inner), { "type": "null" }] }),
            Shape::Either(shapes) => {
                let shapes: Vec<Value> = shapes.iter().map(|shape| self.shape(shape)).collect();
                json!({ "anyOf": shapes })
            }
        }
    }
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

#[cfg(test)]
mod tests;
