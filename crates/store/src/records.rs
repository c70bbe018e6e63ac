//! Typed values in the store: JSON with the number of the schema it was written in.
//!
//! - What a newer version wrote is never read as if it were ours: the error names the key and both numbers.
//! - What an older version wrote is read by the migration its owner supplies.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::StoreError;

/// A value and the schema it was written in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<T> {
    /// Grows by one whenever the meaning of the value's fields changes.
    pub schema: u32,
    /// The value.
    pub value: T,
}

/// The bytes to store for a value.
///
/// # Errors
/// [`StoreError::Malformed`] if the value has no JSON form (a map whose keys are not text).
pub fn encode<T: Serialize>(key: &str, schema: u32, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&Record { schema, value }).map_err(|error| malformed(key, error))
}

/// Reads what [`encode`] wrote in schema `supported` or in an older one with the same fields.
///
/// # Errors
/// [`StoreError::UnsupportedSchema`] if it is newer, [`StoreError::Malformed`] if it is something else.
pub fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8], supported: u32) -> Result<Record<T>, StoreError> {
    decode_or_migrate(key, bytes, supported, |_older, json| serde_json::from_str(json))
}

/// Reads what [`encode`] wrote. What has an older schema than `supported` goes through `migrate`, which
/// is given the schema and the JSON of the value. The record tells the schema that was found.
///
/// # Errors
/// As [`decode`].
pub fn decode_or_migrate<T: DeserializeOwned>(
    key: &str,
    bytes: &[u8],
    supported: u32,
    migrate: impl FnOnce(u32, &str) -> Result<T, serde_json::Error>,
) -> Result<Record<T>, StoreError> {
    // First the number alone: a newer record may differ in everything else.
    let Record { schema, value } =
        serde_json::from_slice::<Record<&RawValue>>(bytes).map_err(|error| malformed(key, error))?;
    if schema > supported {
        return Err(StoreError::UnsupportedSchema { what: format!("`{key}`"), found: schema, supported });
    }
    let value = match schema == supported {
        true => serde_json::from_str(value.get()),
        false => migrate(schema, value.get()),
    };
    Ok(Record { schema, value: value.map_err(|error| malformed(key, error))? })
}

fn malformed(key: &str, error: serde_json::Error) -> StoreError {
    StoreError::Malformed { key: key.to_owned(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use wharf_process::errors::chain;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Node {
        name: String,
        cores: u32,
    }

    fn node() -> Node {
        Node { name: "a".into(), cores: 2 }
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let bytes = encode("node/a", 3, &node()).unwrap();
        assert_eq!(decode("node/a", &bytes, 3).unwrap(), Record { schema: 3, value: node() });
    }

    #[test]
    fn the_stored_form_is_plain_json_with_its_schema_in_front() {
        let bytes = encode("node/a", 1, &node()).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), r#"{"schema":1,"value":{"name":"a","cores":2}}"#);
    }

    #[test]
    fn a_newer_schema_is_refused_by_name_even_if_its_fields_are_unknown() {
        let bytes = br#"{"schema":4,"value":["not","a","node"]}"#;
        let error = decode::<Node>("node/a", bytes, 3).unwrap_err();
        assert_eq!(error.to_string(), "`node/a` has schema 4, but this version reads schemas up to 3");
    }

    #[test]
    fn an_older_schema_goes_through_its_migration() {
        let bytes = br#"{"schema":1,"value":"a:2"}"#;
        let record = decode_or_migrate("node/a", bytes, 2, |schema, json| {
            assert_eq!(schema, 1);
            let text: String = serde_json::from_str(json)?;
            let (name, cores) = text.split_once(':').expect("schema 1 has a colon");
            Ok(Node { name: name.to_owned(), cores: cores.parse().expect("schema 1 has a number") })
        });
        assert_eq!(record.unwrap(), Record { schema: 1, value: node() });
    }

    #[test]
    fn what_makes_no_sense_is_named_with_the_place() {
        for bytes in [&b"not json"[..], br#"{"value":{}}"#, br#"{"schema":1,"value":{"name":"a"}}"#, b""] {
            let error = decode::<Node>("node/a", bytes, 1).unwrap_err();
            let text = chain(&error);
            assert!(text.starts_with("cannot read the record under `node/a`: "), "{text}");
        }
    }
}
