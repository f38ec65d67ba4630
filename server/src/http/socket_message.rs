//! What a client sends over a WebSocket.

use serde_json::Value;

/// Longest id of a request, in characters.
const MOST_ID_CHARS: usize = 64;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    Chat,
    Completions,
    Cancel,
    /// Something that is not there.
    Other(String),
}

/// `{"id","op","body"}`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClientMessage {
    pub(crate) id: String,
    pub(crate) op: Op,
    pub(crate) body: Value,
}

impl ClientMessage {
    /// Reads a text frame.
    ///
    /// # Errors
    /// A sentence about a frame that is no message: it belongs to no request.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut value: Value =
            serde_json::from_str(text).map_err(|error| format!("Expected JSON: {error}."))?;
        let field = |name: &str| match value.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            _ => Err(format!("Expected an object with the string '{name}'.")),
        };
        let (id, op) = (field("id")?, field("op")?);
        if id.is_empty() || id.chars().count() > MOST_ID_CHARS {
            return Err(format!("'id': expected 1 to {MOST_ID_CHARS} characters."));
        }
        let op = match op.as_str() {
            "chat.completions" => Op::Chat,
            "completions" => Op::Completions,
            "cancel" => Op::Cancel,
            _ => Op::Other(op),
        };
        let body = value.get_mut("body").map(Value::take).unwrap_or_default();
        Ok(Self { id, op, body })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_name_their_request() {
        let read = |text: &str| ClientMessage::read(text);
        let message = read(r#"{"id":"a","op":"completions","body":{"model":"m"}}"#);
        let expected =
            ClientMessage { id: "a".to_owned(), op: Op::Completions, body: json!({"model": "m"}) };
        assert_eq!(message, Ok(expected));
        let cancel = read(r#"{"id":"a","op":"cancel"}"#).expect("no body is needed");
        assert_eq!((cancel.op, cancel.body), (Op::Cancel, Value::Null));
        let long = format!(r#"{{"id":"{}","op":"cancel"}}"#, "é".repeat(65));
        for bad in
            ["", "x", "[]", "7", "{}", r#"{"id":1,"op":"cancel"}"#, r#"{"id":"a"}"#, long.as_str()]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read(&long.replacen('é', "", 1)).is_ok());
        assert!(read(r#"{"id":"","op":"cancel"}"#).is_err());
    }
}
