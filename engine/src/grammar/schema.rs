//! JSON schemas before they are compiled: every keyword is known, or named; references are local and
//! resolved.

use hashbrown::HashMap;
use serde_json::{Map, Value, json};

use super::{DEPTH_MAX, GrammarError, SOURCE_BYTES_MAX};

/// A schema of which every keyword is enforced.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedSchema {
    value: Value,
    ignored: Vec<String>,
}

impl CheckedSchema {
    /// The schema, without what is ignored, and all that it refers to in `$defs`.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// JSON pointers of what is not enforced.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

/// Keywords that say nothing about what is valid, or say it to those who refer to them.
const ANNOTATIONS: [&str; 15] = [
    "$schema",
    "$id",
    "id",
    "$comment",
    "$defs",
    "definitions",
    "$vocabulary",
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
];

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

const FORMATS: [&str; 5] = ["date", "time", "date-time", "uuid", "ipv4"];

/// Checks a schema. A keyword that cannot be enforced is an error if `strict`, else it is left out and
/// named.
///
/// # Errors
/// [`GrammarError::Unsupported`], [`GrammarError::Invalid`], [`GrammarError::TooComplex`].
pub fn check_schema(schema: &Value, strict: bool) -> Result<CheckedSchema, GrammarError> {
    let bytes = schema.to_string().len();
    if bytes > SOURCE_BYTES_MAX {
        let what = format!("expected a schema of at most {SOURCE_BYTES_MAX} bytes, got {bytes}");
        return Err(GrammarError::TooComplex(what));
    }
    let depth = depth(schema);
    if depth > DEPTH_MAX {
        let what = format!("expected at most {DEPTH_MAX} levels in the schema, got {depth}");
        return Err(GrammarError::TooComplex(what));
    }
    let mut check = Check {
        root: schema,
        strict,
        ignored: Vec::new(),
        names: HashMap::new(),
        todo: Vec::new(),
    };
    let mut value = check.schema(schema, "")?;
    let mut definitions = Map::new();
    while let Some((pointer, name)) = check.todo.pop() {
        let target = check.target(&pointer)?;
        definitions.insert(name, check.schema(target, &pointer)?);
    }
    if !definitions.is_empty()
        && let Some(schema) = value.as_object_mut()
    {
        schema.insert("$defs".to_owned(), Value::Object(definitions));
    }
    check.ignored.sort();
    check.ignored.dedup();
    Ok(CheckedSchema { value, ignored: check.ignored })
}

/// Levels of nesting; a number has 1.
fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(list) => list.iter().map(depth).max(),
        Value::Object(object) => object.values().map(depth).max(),
        _ => None,
    };
    1 + deepest.unwrap_or(0)
}

struct Check<'a> {
    root: &'a Value,
    strict: bool,
    ignored: Vec<String>,
    /// The definition that each pointer became.
    names: HashMap<String, String>,
    /// Definitions that are still to be checked, with their pointers.
    todo: Vec<(String, String)>,
}

fn invalid(pointer: &str, expected: &'static str, got: &Value) -> GrammarError {
    let mut got = got.to_string();
    if let Some((end, _)) = got.char_indices().nth(60) {
        got.truncate(end);
        got.push('…');
    }
    GrammarError::Invalid { pointer: pointer.to_owned(), expected, got }
}

/// A pointer one step further.
fn at(pointer: &str, step: &str) -> String {
    format!("{pointer}/{}", step.replace('~', "~0").replace('/', "~1"))
}

impl<'a> Check<'a> {
    fn schema(&mut self, schema: &Value, pointer: &str) -> Result<Value, GrammarError> {
        let schema = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(schema) => schema,
            other => return Err(invalid(pointer, "an object or a boolean", other)),
        };
        let mut kept = Map::new();
        for (key, value) in schema {
            if ANNOTATIONS.contains(&key.as_str()) {
                continue;
            }
            let here = at(pointer, key);
            if let Some(value) = self.keyword(key, value, &here)? {
                kept.insert(key.clone(), value);
            }
        }
        Ok(Value::Object(kept))
    }

    /// What is left of a keyword's value; nothing if it is ignored.
    fn keyword(
        &mut self,
        key: &str,
        value: &Value,
        pointer: &str,
    ) -> Result<Option<Value>, GrammarError> {
        let kept = match key {
            "type" => {
                let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                let known = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
                if list.is_empty() || !list.iter().all(known) {
                    return Err(invalid(pointer, "names of JSON types", value));
                }
                value.clone()
            }
            "properties" => self.schemas_by_name(value, pointer)?,
            "required" => match value.as_array() {
                Some(names) if names.iter().all(Value::is_string) => value.clone(),
                _ => return Err(invalid(pointer, "an array of strings", value)),
            },
            "items" if value.is_array() => return self.unsupported("a list of schemas", pointer),
            "items" | "additionalProperties" => self.schema(value, pointer)?,
            "prefixItems" | "anyOf" | "oneOf" | "allOf" => self.schemas(value, pointer)?,
            "enum" => match value.as_array() {
                Some(values) if !values.is_empty() => value.clone(),
                _ => return Err(invalid(pointer, "an array with at least one value", value)),
            },
            "const" => value.clone(),
            "minItems" | "maxItems" | "minLength" | "maxLength" => {
                let whole = value.as_f64().filter(|n| *n >= 0.0 && n.fract() == 0.0);
                let Some(whole) = whole.filter(|n| *n <= f64::from(u32::MAX)) else {
                    return Err(invalid(pointer, "a whole number from 0 to 4294967295", value));
                };
                json!(whole as u64)
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                if !value.is_number() {
                    return Err(invalid(pointer, "a number", value));
                }
                value.clone()
            }
            "pattern" => match value.as_str() {
                Some(pattern) if has_context(pattern) => {
                    return self.unsupported("a look-around or back-reference", pointer);
                }
                Some(_) => value.clone(),
                None => return Err(invalid(pointer, "a string", value)),
            },
            "format" => match value.as_str() {
                Some(format) if FORMATS.contains(&format) => value.clone(),
                Some(format) => {
                    return self.unsupported(&format!("the format {format:?}"), pointer);
                }
                None => return Err(invalid(pointer, "a string", value)),
            },
            "$ref" => match value.as_str() {
                Some(reference) => json!(self.reference(reference, pointer)?),
                None => return Err(invalid(pointer, "a string", value)),
            },
            other => return self.unsupported(&format!("the keyword {other:?}"), pointer),
        };
        Ok(Some(kept))
    }

    fn unsupported(&mut self, what: &str, pointer: &str) -> Result<Option<Value>, GrammarError> {
        if self.strict {
            let (pointer, what) = (pointer.to_owned(), what.to_owned());
            return Err(GrammarError::Unsupported { pointer, what });
        }
        self.ignored.push(pointer.to_owned());
        Ok(None)
    }

    fn schemas_by_name(&mut self, value: &Value, pointer: &str) -> Result<Value, GrammarError> {
        let Some(named) = value.as_object() else {
            return Err(invalid(pointer, "an object of schemas", value));
        };
        let checked = named
            .iter()
            .map(|(name, schema)| Ok((name.clone(), self.schema(schema, &at(pointer, name))?)));
        Ok(Value::Object(checked.collect::<Result<_, GrammarError>>()?))
    }

    fn schemas(&mut self, value: &Value, pointer: &str) -> Result<Value, GrammarError> {
        let Some(list) = value.as_array().filter(|list| !list.is_empty()) else {
            return Err(invalid(pointer, "an array with at least one schema", value));
        };
        let checked = list.iter().enumerate();
        let checked = checked.map(|(i, schema)| self.schema(schema, &at(pointer, &i.to_string())));
        Ok(Value::Array(checked.collect::<Result<_, _>>()?))
    }

    /// The name of what is referred to, among the definitions.
    fn reference(&mut self, reference: &str, pointer: &str) -> Result<String, GrammarError> {
        let target = reference.strip_prefix('#').and_then(percent_decoded);
        let Some(target) = target.filter(|t| t.is_empty() || t.starts_with('/')) else {
            let what = format!("the reference {reference:?} to something outside of the schema");
            return Err(GrammarError::Unsupported { pointer: pointer.to_owned(), what });
        };
        let target = target.trim_end_matches('/').to_owned();
        if self.root.pointer(&target).is_none() {
            return Err(invalid(pointer, "a reference to a part of the schema", &json!(reference)));
        }
        if let Some(name) = self.names.get(&target) {
            return Ok(format!("#/$defs/{name}"));
        }
        let name = format!("d{}", self.names.len());
        self.names.insert(target.clone(), name.clone());
        self.todo.push((target, name.clone()));
        Ok(format!("#/$defs/{name}"))
    }

    fn target(&self, pointer: &str) -> Result<&'a Value, GrammarError> {
        self.root
            .pointer(pointer)
            .ok_or_else(|| invalid(pointer, "a part of the schema", &json!(pointer)))
    }
}

/// A fragment of a URI as text; `None` where it is not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        let hex = |at: usize| more.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &more[2..];
            }
            _ => {
                bytes.push(first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// Does a regular expression look around, or back at what a group matched?
fn has_context(pattern: &str) -> bool {
    let bytes = pattern.as_bytes();
    let mut index = 0;
    let mut class = false;
    while index < bytes.len() {
        let rest = &bytes[index..];
        match bytes[index] {
            b'\\' => {
                let next = bytes.get(index + 1).copied().unwrap_or(0);
                if !class
                    && (matches!(next, b'1'..=b'9' | b'b' | b'B') || rest.starts_with(b"\\k<"))
                {
                    return true;
                }
                index += 1;
            }
            b'[' => class = true,
            b']' => class = false,
            b'(' if !class => {
                let around: [&[u8]; 4] = [b"(?=", b"(?!", b"(?<=", b"(?<!"];
                if around.iter().any(|mark| rest.starts_with(mark)) {
                    return true;
                }
            }
            _ => {}
        }
        index += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(schema: &Value) -> String {
        match check_schema(schema, true) {
            Err(GrammarError::Unsupported { pointer, .. }) => pointer,
            other => panic!("{schema}: {other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_or_named() {
        for (schema, at) in [
            (json!({"properties": {"a/b": {"not": {}}}}), "/properties/a~1b/not"),
            (json!({"items": {"format": "email"}}), "/items/format"),
            (json!({"anyOf": [{}, {"pattern": "(?=x)"}]}), "/anyOf/1/pattern"),
            (json!({"pattern": r"(a)\1"}), "/pattern"),
            (json!({"patternProperties": {}}), "/patternProperties"),
            (json!({"$ref": "#/$defs/x", "$defs": {"x": {"if": true}}}), "/$defs/x/if"),
            (json!({"x-guidance": {}}), "/x-guidance"),
        ] {
            assert_eq!(pointer(&schema), at);
            let loose = check_schema(&schema, false).expect("not strict");
            assert_eq!(loose.ignored(), [at]);
            assert!(!loose.value().to_string().contains("x-guidance"));
        }
        assert_eq!(pointer(&json!({"$ref": "https://example.com/x"})), "/$ref");
        assert!(check_schema(&json!({"$ref": "https://example.com/x"}), false).is_err());
        assert!(check_schema(&json!({"pattern": r"[\1(?=]\d"}), true).is_ok());
    }

    #[test]
    fn references_become_definitions() {
        let schema = json!({
            "title": "a tree", "$ref": "#/definitions/tree%20node",
            "definitions": {"tree node": {
                "properties": {"left": {"$ref": "#/definitions/tree node"}, "all": {"$ref": "#"}},
            }},
        });
        let checked = check_schema(&schema, true).expect("valid");
        let value = checked.value();
        assert_eq!(value["$ref"], "#/$defs/d0");
        assert_eq!(value["$defs"]["d0"]["properties"]["left"]["$ref"], "#/$defs/d0");
        assert_eq!(value["$defs"]["d0"]["properties"]["all"]["$ref"], "#/$defs/d1");
        assert_eq!(value["$defs"]["d1"], json!({"$ref": "#/$defs/d0"}));
    }

    #[test]
    fn what_is_no_schema_is_refused() {
        for schema in [
            json!(3),
            json!({"type": "text"}),
            json!({"type": []}),
            json!({"properties": []}),
            json!({"required": "a"}),
            json!({"enum": []}),
            json!({"anyOf": []}),
            json!({"minItems": -1}),
            json!({"minimum": "1"}),
            json!({"$ref": "#/$defs/none"}),
        ] {
            let error = check_schema(&schema, false).expect_err("no schema");
            assert!(matches!(error, GrammarError::Invalid { .. }), "{schema}: {error}");
        }
        let deep = (0..70).fold(json!({}), |inner, _| json!({ "items": inner }));
        let long = json!({"const": "x".repeat(SOURCE_BYTES_MAX)});
        for schema in [deep, long] {
            let error = check_schema(&schema, true).expect_err("too large");
            assert!(matches!(error, GrammarError::TooComplex(_)), "{error}");
        }
    }
}
