//! JSON schemas made at random, and whether a document is valid by one: the keywords that replies are
//! held to, written down plainly.

use serde_json::{Map, Value, json};
use trefoil_kernels::cases::Random;

/// A schema whose documents are short, most of them.
pub fn schema(random: &mut Random) -> Value {
    let mut maker = Maker { random, definitions: Map::new() };
    let mut schema = match maker.below(4) {
        0 => maker.array(3),
        1 => maker.any(3),
        _ => maker.object(3),
    };
    if !maker.definitions.is_empty()
        && let Some(schema) = schema.as_object_mut()
    {
        schema.insert("$defs".to_owned(), Value::Object(maker.definitions));
    }
    schema
}

struct Maker<'a> {
    random: &'a mut Random,
    definitions: Map<String, Value>,
}

impl Maker<'_> {
    fn below(&mut self, most: u64) -> u64 {
        self.random.bits() % most
    }

    fn any(&mut self, depth: u64) -> Value {
        if depth == 0 {
            return self.leaf();
        }
        match self.below(8) {
            0 | 1 => self.object(depth),
            2 => self.array(depth),
            3 => json!({"anyOf": [self.any(depth - 1), self.any(depth - 1)]}),
            4 => {
                let name = format!("d {}/{}", self.definitions.len(), depth);
                let definition = self.any(depth - 1);
                let reference = name.replace('/', "~1").replace(' ', "%20");
                self.definitions.insert(name, definition);
                json!({"$ref": format!("#/$defs/{reference}")})
            }
            _ => self.leaf(),
        }
    }

    fn leaf(&mut self) -> Value {
        match self.below(14) {
            0 => json!({"type": "null"}),
            1 => json!({"type": "boolean"}),
            2 => json!({"type": "integer"}),
            3 => {
                let from = self.below(200) as i64 - 100;
                let to = from + self.below(150) as i64;
                json!({"type": "integer", "minimum": from, "maximum": to})
            }
            4 => json!({"type": "integer", "exclusiveMinimum": self.below(10)}),
            5 => {
                let least = self.below(4);
                let most = least + self.below(12);
                json!({"type": "string", "minLength": least, "maxLength": most})
            }
            6 => json!({"type": "string", "pattern": "^[a-c]{2,5}(-\\d+)?$", "maxLength": 9}),
            7 => json!({"type": "string", "pattern": "x[yz]", "maxLength": 6}),
            8 => {
                let formats = ["date", "time", "date-time", "uuid", "ipv4"];
                json!({"type": "string", "format": formats[self.below(5) as usize]})
            }
            9 => json!({"enum": ["red", "gr\"een", 3, null, [1, "two"], {"k": "ü"}]}),
            10 => json!({"const": {"fixed": [true, "\\", "\n"]}}),
            11 => json!({"type": ["string", "null"], "maxLength": 5}),
            12 => json!({"type": "number", "minimum": -2.5, "maximum": 40}),
            _ => json!({"oneOf": [{"type": "boolean"}, {"const": "neither"}]}),
        }
    }

    fn object(&mut self, depth: u64) -> Value {
        let mut properties = Map::new();
        for index in 0..self.below(4) {
            let name = ["name", "a b", "größe", "q\"uote"][index as usize];
            properties.insert(name.to_owned(), self.any(depth - 1));
        }
        let names: Vec<String> = properties.keys().cloned().collect();
        let required: Vec<String> = names.into_iter().filter(|_| self.below(3) > 0).collect();
        let mut schema = json!({"type": "object", "properties": properties, "required": required});
        // Any number of others would rarely come to an end.
        schema["additionalProperties"] = json!(false);
        if self.below(5) == 0 {
            let more = json!({
                "type": "object", "properties": {"more": {"type": "boolean"}}, "required": ["more"],
            });
            schema["properties"]["more"] = json!({"enum": [true, 1]});
            return json!({"allOf": [schema, more]});
        }
        schema
    }

    fn array(&mut self, depth: u64) -> Value {
        let least = self.below(3);
        let most = least + self.below(3);
        let items = self.any(depth - 1);
        let mut schema =
            json!({"type": "array", "items": items, "minItems": least, "maxItems": most});
        if self.below(3) == 0 {
            schema["prefixItems"] = json!([self.leaf()]);
        }
        schema
    }
}

/// Is a document valid by a schema? The error names the place.
pub fn check(root: &Value, value: &Value) -> Result<(), String> {
    valid(root, root, value)
}

fn valid(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Bool(false) => return Err(format!("nothing is allowed here, got {value}")),
        Value::Object(schema) => schema,
        other => panic!("not a schema: {other}"),
    };
    for (key, keyword) in schema {
        let holds = match key.as_str() {
            "$defs" => true,
            "type" => {
                let names = keyword.as_array().map_or(std::slice::from_ref(keyword), Vec::as_slice);
                names.iter().any(|name| has_type(name.as_str().expect("a name"), value))
            }
            "enum" => keyword.as_array().expect("values").contains(value),
            "const" => keyword == value,
            "$ref" => {
                let pointer = keyword.as_str().expect("a string").trim_start_matches('#');
                let pointer = pointer.replace("%20", " ");
                let target = root.pointer(&pointer).expect("the reference is there");
                valid(root, target, value)?;
                true
            }
            "allOf" => {
                for part in keyword.as_array().expect("schemas") {
                    valid(root, part, value)?;
                }
                true
            }
            "anyOf" | "oneOf" => {
                let mut schemas = keyword.as_array().expect("schemas").iter();
                schemas.any(|schema| valid(root, schema, value).is_ok())
            }
            _ => match value {
                Value::String(text) => text_holds(key, keyword, text),
                Value::Number(number) => {
                    number_holds(key, keyword, number.as_f64().expect("finite"))
                }
                Value::Array(list) => array_holds(root, schema, key, keyword, list)?,
                Value::Object(object) => object_holds(root, schema, key, keyword, object)?,
                _ => true,
            },
        };
        if !holds {
            return Err(format!("{key} {keyword} does not hold for {value}"));
        }
    }
    Ok(())
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("not a type: {other}"),
    }
}

fn text_holds(key: &str, keyword: &Value, text: &str) -> bool {
    let count = text.chars().count() as u64;
    match key {
        "minLength" => count >= keyword.as_u64().expect("a number"),
        "maxLength" => count <= keyword.as_u64().expect("a number"),
        "pattern" => matches(keyword.as_str().expect("a pattern"), text),
        "format" => {
            const DATE: &str = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])";
            const TIME: &str = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
            const BYTE: &str = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
            let pattern = match keyword.as_str().expect("a format") {
                "date" => DATE.to_owned(),
                "time" => TIME.to_owned(),
                "date-time" => format!("{DATE}[tT]{TIME}"),
                "uuid" => "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}".to_owned(),
                "ipv4" => format!(r"{BYTE}(\.{BYTE}){{3}}"),
                other => panic!("not a format: {other}"),
            };
            matches(&format!("^(?:{pattern})$"), text)
        }
        _ => true,
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    let regex = fancy_regex::Regex::new(pattern).expect("a pattern");
    regex.is_match(text).expect("it ends")
}

fn number_holds(key: &str, keyword: &Value, number: f64) -> bool {
    let bound = || keyword.as_f64().expect("a number");
    match key {
        "minimum" => number >= bound(),
        "maximum" => number <= bound(),
        "exclusiveMinimum" => number > bound(),
        "exclusiveMaximum" => number < bound(),
        _ => true,
    }
}

fn array_holds(
    root: &Value,
    schema: &Map<String, Value>,
    key: &str,
    keyword: &Value,
    list: &[Value],
) -> Result<bool, String> {
    let prefix = schema.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
    match key {
        "minItems" => return Ok(list.len() as u64 >= keyword.as_u64().expect("a number")),
        "maxItems" => return Ok(list.len() as u64 <= keyword.as_u64().expect("a number")),
        "items" => {
            for item in list.iter().skip(prefix) {
                valid(root, keyword, item)?;
            }
        }
        "prefixItems" => {
            for (schema, item) in keyword.as_array().expect("schemas").iter().zip(list) {
                valid(root, schema, item)?;
            }
        }
        _ => {}
    }
    Ok(true)
}

fn object_holds(
    root: &Value,
    schema: &Map<String, Value>,
    key: &str,
    keyword: &Value,
    object: &Map<String, Value>,
) -> Result<bool, String> {
    let named = schema.get("properties").and_then(Value::as_object);
    match key {
        "required" => {
            let mut names = keyword.as_array().expect("names").iter();
            return Ok(names.all(|name| object.contains_key(name.as_str().expect("a name"))));
        }
        "properties" => {
            for (name, schema) in keyword.as_object().expect("schemas") {
                if let Some(value) = object.get(name) {
                    valid(root, schema, value)?;
                }
            }
        }
        "additionalProperties" => {
            for (name, value) in object {
                if !named.is_some_and(|named| named.contains_key(name)) {
                    valid(root, keyword, value)?;
                }
            }
        }
        _ => {}
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_valid_is_seen() {
        let schema = json!({
            "type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {
                "a": {"$ref": "#/$defs/list"},
                "b": {"anyOf": [{"const": 1}, {"type": "string", "format": "date"}]},
            },
            "$defs": {"list": {
                "type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 2,
                "prefixItems": [{"type": "string", "pattern": "^x", "minLength": 2}],
            }},
        });
        for (document, ok) in [
            (json!({"a": []}), true),
            (json!({"a": ["xy", 3], "b": "2024-02-29"}), true),
            (json!({"a": ["xy", 10]}), false),
            (json!({"a": ["x"]}), false),
            (json!({"a": ["yx"]}), false),
            (json!({"a": ["xy", 1.5]}), false),
            (json!({"a": ["xy", 1, 2]}), false),
            (json!({"a": [], "b": 2}), false),
            (json!({"a": [], "b": "2024-13-01"}), false),
            (json!({"a": [], "c": 1}), false),
            (json!({"b": 1}), false),
            (json!([]), false),
        ] {
            assert_eq!(check(&schema, &document).is_ok(), ok, "{document}");
        }
    }
}
