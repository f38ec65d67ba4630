//! `tools`, `tool_choice` and `parallel_tool_calls` (API.md section 3.2): what the model is told, what
//! its reply is bound to, and the calls in it.

use serde_json::{Map, Value, json};
use trefoil_engine::grammar::{GrammarSource, check_schema};
use trefoil_engine::loaded::TextSide;
use trefoil_engine::text::tools::{Bound, CallParser, Function, call_grammar};

use super::error::ApiError;
use super::fields::{Fields, element};
use super::format::grammar_error;

const MOST_TOOLS: usize = 128;

/// Must the model call a tool?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    None,
    Auto,
    Required,
}

/// The tools of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// Those that may be called, as templates take them.
    list: Vec<Value>,
    functions: Vec<Function>,
    /// Is one of them strict?
    strict: bool,
    choice: Choice,
    parallel: bool,
    /// Parts of schemas that are not enforced.
    pub(crate) ignored: Vec<String>,
}

/// How a request names a function: in an object of its own, or right here, as the Responses API does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Chat,
    Responses,
}

/// Reads the fields of a request that say it.
pub(crate) fn read(fields: &mut Fields, layout: Layout) -> Result<Tools, ApiError> {
    let given = fields.array("tools")?.unwrap_or_default();
    if given.len() > MOST_TOOLS {
        let got = given.len().to_string();
        return Err(fields.invalid("tools", &format!("at most {MOST_TOOLS} tools"), &got));
    }
    let mut tools = Tools {
        list: Vec::new(),
        functions: Vec::new(),
        strict: false,
        choice: Choice::Auto,
        parallel: fields.bool("parallel_tool_calls")?.unwrap_or(true),
        ignored: Vec::new(),
    };
    for (index, tool) in given.into_iter().enumerate() {
        tools.add(tool, &format!("tools[{index}]"), layout)?;
    }
    match fields.take("tool_choice") {
        None => {}
        Some(Value::String(mode)) => tools.choose(fields, &mode)?,
        Some(choice) => tools.choose_some(fields, choice, layout)?,
    }
    if tools.choice == Choice::Required && tools.functions.is_empty() {
        return Err(fields.invalid("tool_choice", "'tools' beside it", "none"));
    }
    Ok(tools)
}

impl Tools {
    fn add(&mut self, tool: Value, path: &str, layout: Layout) -> Result<(), ApiError> {
        let mut tool = element(tool, path.to_owned())?;
        let kind = tool.string("type")?.ok_or_else(|| tool.missing("type"))?;
        if kind != "function" {
            let message = format!("'{path}': expected a tool of type function, got {kind:?}.");
            return Err(ApiError::field("unsupported_value", path, message));
        }
        let mut function = match layout {
            Layout::Chat => tool.object("function")?.ok_or_else(|| tool.missing("function"))?,
            Layout::Responses => tool,
        };
        let name = function.string("name")?.ok_or_else(|| function.missing("name"))?;
        let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(of_name) {
            let expected = "1 to 64 letters, digits, '_' and '-'";
            return Err(function.invalid("name", expected, &format!("{name:?}")));
        }
        if self.functions.iter().any(|other| other.name == name) {
            return Err(function.invalid("name", "names that differ", &format!("{name:?} twice")));
        }
        let description = function.string("description")?;
        let strict = function.bool("strict")?.unwrap_or(false);
        // Without parameters there are none.
        let parameters = function.take("parameters").unwrap_or_else(
            || json!({"type": "object", "properties": {}, "additionalProperties": false}),
        );
        let field = format!("{path}.parameters");
        let checked =
            check_schema(&parameters, strict).map_err(|error| grammar_error(&error, &field))?;
        let ignored = checked.ignored().iter().map(|pointer| format!("{field}{pointer}"));
        self.ignored.extend(ignored);
        let mut told = Map::new();
        told.insert("name".to_owned(), json!(name));
        if let Some(description) = description {
            told.insert("description".to_owned(), json!(description));
        }
        told.insert("parameters".to_owned(), parameters);
        self.list.push(json!({"type": "function", "function": told}));
        self.strict |= strict;
        self.functions.push(Function { name, parameters: checked });
        Ok(())
    }

    fn choose(&mut self, fields: &Fields, mode: &str) -> Result<(), ApiError> {
        self.choice = match mode {
            "none" => Choice::None,
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            other => {
                let expected = "none, auto, required or an object";
                return Err(fields.invalid("tool_choice", expected, &format!("{other:?}")));
            }
        };
        Ok(())
    }

    /// A function by its name, or several with a mode.
    fn choose_some(
        &mut self,
        fields: &Fields,
        choice: Value,
        layout: Layout,
    ) -> Result<(), ApiError> {
        let mut choice = element(choice, "tool_choice".to_owned())?;
        let kind = choice.string("type")?.ok_or_else(|| choice.missing("type"))?;
        match kind.as_str() {
            "function" => {
                let name = function_name(choice, layout)?;
                self.choice = Choice::Required;
                self.keep(&[name], fields)
            }
            "allowed_tools" => {
                // The Responses API has mode and tools right here.
                let mut allowed = match choice.object("allowed_tools")? {
                    Some(inner) => inner,
                    None if layout == Layout::Responses => choice,
                    None => return Err(choice.missing("allowed_tools")),
                };
                let mode = allowed.string("mode")?.ok_or_else(|| allowed.missing("mode"))?;
                self.choose(fields, &mode)?;
                let tools = allowed.array("tools")?.ok_or_else(|| allowed.missing("tools"))?;
                let names = tools.into_iter().map(|tool| {
                    let mut tool = element(tool, "tool_choice.allowed_tools.tools".to_owned())?;
                    tool.take("type");
                    function_name(tool, layout)
                });
                self.keep(&names.collect::<Result<Vec<_>, _>>()?, fields)
            }
            other => {
                let message = format!(
                    "'tool_choice': expected the type function or allowed_tools, got {other:?}."
                );
                Err(ApiError::field("unsupported_value", "tool_choice", message))
            }
        }
    }

    fn keep(&mut self, names: &[String], fields: &Fields) -> Result<(), ApiError> {
        let known = |name: &&String| self.functions.iter().any(|function| function.name == **name);
        if let Some(name) = names.iter().find(|name| !known(name)) {
            return Err(fields.invalid("tool_choice", "names of 'tools'", &format!("{name:?}")));
        }
        let keep: Vec<bool> =
            self.functions.iter().map(|function| names.contains(&function.name)).collect();
        let mut flags = keep.iter();
        self.functions.retain(|_| flags.next().is_some_and(|keep| *keep));
        let mut flags = keep.iter();
        self.list.retain(|_| flags.next().is_some_and(|keep| *keep));
        Ok(())
    }

    /// May the reply call any?
    pub(crate) fn any(&self) -> bool {
        self.choice != Choice::None && !self.functions.is_empty()
    }

    /// Must the reply call one?
    pub(crate) fn required(&self) -> bool {
        self.choice == Choice::Required
    }

    /// May there be several calls?
    pub(crate) fn parallel(&self) -> bool {
        self.parallel
    }

    /// What the template is given.
    pub(crate) fn list(&self) -> Option<Value> {
        self.any().then(|| Value::Array(self.list.clone()))
    }

    /// What the reply is bound to, if its calls must be valid.
    pub(crate) fn grammar(&self, text: &TextSide) -> Option<GrammarSource> {
        let bound = match self.choice {
            _ if !self.any() => return None,
            Choice::Required => Bound::Calls,
            _ if self.strict => Bound::TextOrCalls,
            _ => return None,
        };
        let (style, tokenizer) = (&text.calls, &text.tokenizer);
        Some(call_grammar(style, tokenizer, &self.functions, bound, self.parallel))
    }

    /// What finds the calls of one reply.
    pub(crate) fn parser(&self, text: &TextSide) -> Option<CallParser> {
        let names = self.functions.iter().map(|function| function.name.clone()).collect();
        let most = if self.parallel { usize::MAX } else { 1 };
        self.any().then(|| CallParser::new(text.calls.form, names, most))
    }
}

fn function_name(mut choice: Fields, layout: Layout) -> Result<String, ApiError> {
    let mut named = match choice.object("function")? {
        Some(inner) => inner,
        None if layout == Layout::Responses => choice,
        None => return Err(choice.missing("function")),
    };
    named.string("name")?.ok_or_else(|| named.missing("name"))
}

/// A call as a message of the assistant holds it.
pub(crate) fn call_object(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(body: &Value) -> Result<Tools, ApiError> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).expect("an object");
        read(&mut fields, Layout::Chat)
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name}})
    }

    #[test]
    fn choices_leave_the_tools_that_may_be_called() {
        let both = json!([function("a"), function("b")]);
        let names = |choice: Value| {
            let tools = tools(&json!({"tools": both, "tool_choice": choice})).expect("valid");
            let list = tools.list();
            let list = list.as_ref().and_then(Value::as_array).map_or(0, Vec::len);
            assert_eq!(list, if tools.any() { tools.functions.len() } else { 0 });
            (list, tools.required())
        };
        assert_eq!(names(json!("auto")), (2, false));
        assert_eq!(names(json!("none")), (0, false));
        assert_eq!(names(json!("required")), (2, true));
        assert_eq!(names(function("b")), (1, true));
        let allowed = json!({"mode": "auto", "tools": [function("a")]});
        let allowed = json!({"type": "allowed_tools", "allowed_tools": allowed});
        assert_eq!(names(allowed), (1, false));
    }

    #[test]
    fn refusals_name_their_field() {
        let one = json!([function("a")]);
        for (body, code, param) in [
            (json!({"tools": [{"type": "custom"}]}), "unsupported_value", "tools[0]"),
            (json!({"tools": [{}]}), "missing_required_parameter", "tools[0].type"),
            (json!({"tools": [function("a b")]}), "invalid_value", "tools[0].function.name"),
            (
                json!({"tools": [function("a"), function("a")]}),
                "invalid_value",
                "tools[1].function.name",
            ),
            (json!({"tool_choice": "required"}), "invalid_value", "tool_choice"),
            (json!({"tools": one, "tool_choice": function("b")}), "invalid_value", "tool_choice"),
            (json!({"tools": one, "tool_choice": "some"}), "invalid_value", "tool_choice"),
            (json!({"tools": vec![function("a"); 129]}), "invalid_value", "tools"),
        ] {
            let error = tools(&body).expect_err("refused");
            assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{body}");
        }
        let strict = json!({"type": "function", "function": {
            "name": "a", "strict": true, "parameters": {"type": "object", "not": {}},
        }});
        let error = tools(&json!({"tools": [strict]})).expect_err("refused");
        assert_eq!((error.code, error.param.as_deref()), ("unsupported_schema", Some("/not")));
    }
}
