//! Messages and tools as a model's template takes them.

use serde_json::{Map, Value, json};

use super::{CallForm, CallStyle};

/// The messages to render, in the layout of OpenAI's chat API. Arguments of earlier calls become
/// objects, as templates want them. Where the template knows no tools, they are told in the system
/// message, earlier calls are written as text, and results are messages of the user.
pub fn prepare(style: &CallStyle, messages: &Value, tools: Option<&Value>) -> Value {
    let mut list: Vec<Value> = messages.as_array().cloned().unwrap_or_default();
    list.iter_mut().for_each(|message| {
        arguments_as_objects(message);
        if matches!(style.form, CallForm::List | CallForm::Named) {
            short_ids(message);
        }
    });
    if !style.told_by_template {
        list = list.into_iter().map(plain).collect();
        if let Some(tools) = tools {
            tell(&mut list, tools);
        }
    }
    Value::Array(list)
}

fn calls(message: &mut Value) -> impl Iterator<Item = &mut Value> {
    message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten()
}

fn arguments_as_objects(message: &mut Value) {
    for call in calls(message) {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        if let Some(object) = parsed.filter(Value::is_object) {
            *arguments = object;
        }
    }
}

/// Templates of this family take ids of nine letters and digits only: the last ones.
fn short_ids(message: &mut Value) {
    fn short(id: &mut Value) {
        let Some(text) = id.as_str() else { return };
        let all: Vec<char> = text.chars().filter(char::is_ascii_alphanumeric).collect();
        let last: String = all[all.len().saturating_sub(9)..].iter().collect();
        *id = json!(format!("{last:0>9}"));
    }
    calls(message).filter_map(|call| call.get_mut("id")).for_each(short);
    if let Some(id) = message.get_mut("tool_call_id") {
        short(id);
    }
}

/// A message without anything of tools but text.
fn plain(message: Value) -> Value {
    let Value::Object(mut fields) = message else { return message };
    let text = |fields: &Map<String, Value>| {
        fields.get("content").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    if fields.get("role").is_some_and(|role| role == "tool") {
        let content = format!("<tool_response>\n{}\n</tool_response>", text(&fields));
        return json!({"role": "user", "content": content});
    }
    if let Some(Value::Array(calls)) = fields.remove("tool_calls") {
        let mut content = text(&fields);
        for call in calls {
            let function = &call["function"];
            let call = json!({"name": function["name"], "arguments": function["arguments"]});
            if !content.is_empty() {
                content.push('\n');
            }
            content.push_str(&format!("<tool_call>\n{call}\n</tool_call>"));
        }
        fields.insert("content".to_owned(), json!(content));
    }
    Value::Object(fields)
}

/// Puts the tools into the system message, which is made if there is none.
fn tell(list: &mut Vec<Value>, tools: &Value) {
    let mut text = String::from("You may call these functions to help with the request:\n");
    for tool in tools.as_array().into_iter().flatten() {
        text.push_str(&format!("{}\n", tool["function"]));
    }
    text.push_str(
        "To call one, write its name and arguments as JSON between two marks:\n<tool_call>\n\
         {\"name\": \"function\", \"arguments\": {}}\n</tool_call>",
    );
    match list.first_mut().filter(|message| message["role"] == "system") {
        Some(system) => {
            let old = system["content"].as_str().unwrap_or_default();
            system["content"] = json!(format!("{old}\n\n{text}"));
        }
        None => list.insert(0, json!({"role": "system", "content": text})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(form: CallForm, told_by_template: bool) -> CallStyle {
        CallStyle { form, told_by_template, shown: [].into() }
    }

    fn messages() -> Value {
        let function = json!({"name": "add", "arguments": "{\"a\": 1}"});
        let call = json!({"id": "call_0123456789", "type": "function", "function": function});
        json!([
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_0123456789", "content": "2"},
        ])
    }

    #[test]
    fn templates_get_objects_and_ids_that_they_take() {
        let got = prepare(&style(CallForm::Tagged, true), &messages(), None);
        assert_eq!(got[1]["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(got[1]["tool_calls"][0]["id"], "call_0123456789");
        let got = prepare(&style(CallForm::List, true), &messages(), None);
        assert_eq!(got[1]["tool_calls"][0]["id"], "123456789");
        assert_eq!(got[2]["tool_call_id"], "123456789");
    }

    #[test]
    fn templates_without_tools_get_text() {
        let tools = json!([{"type": "function", "function": {"name": "add"}}]);
        let got = prepare(&style(CallForm::Tagged, false), &messages(), Some(&tools));
        assert_eq!(got[0]["role"], "system");
        assert!(got[0]["content"].as_str().is_some_and(|text| text.contains("{\"name\":\"add\"}")));
        let call = "<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n</tool_call>";
        assert_eq!(got[2], json!({"role": "assistant", "content": call}));
        let result = "<tool_response>\n2\n</tool_response>";
        assert_eq!(got[3], json!({"role": "user", "content": result}));
    }
}
