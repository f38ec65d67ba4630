//! The answer of POST /v1/responses as it grows: items, and the events that tell of them.

use serde_json::{Map, Value, json};
use trefoil_engine::generate::{Finish, Summary};

use super::parts::Part;

/// An event of the stream, before it has its number.
pub(crate) type Told = (&'static str, Value);

/// An item of text.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Message,
    Reasoning,
}

/// The items of a response. Each change leaves events, which an answer at once does not look at.
#[derive(Debug, Default)]
pub(crate) struct Output {
    items: Vec<Value>,
    /// What is being written, if anything is: the last item.
    open: Option<Kind>,
    /// Log probabilities that no event has told yet.
    logprobs: Vec<Value>,
    events: Vec<Told>,
}

impl Output {
    /// Events since the last time.
    pub(crate) fn events(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.events)
    }

    /// Log probabilities of a token; they go with the text that follows.
    pub(crate) fn logprobs(&mut self, value: Value) {
        self.logprobs.push(value);
    }

    /// Takes a part of the reply.
    pub(crate) fn push(&mut self, part: &Part) {
        match part {
            Part::Text(text) | Part::Reasoning(text) if text.is_empty() => {}
            Part::Reasoning(text) => self.text(Kind::Reasoning, text),
            Part::Text(text) => self.text(Kind::Message, text),
            Part::Call { id, name, arguments, .. } => self.call(id, name, arguments),
        }
    }

    /// Ends the last item; `whole` unless the reply was cut off.
    pub(crate) fn finish(&mut self, whole: bool) {
        if self.items.is_empty() {
            self.open(Kind::Message);
        }
        self.close(if whole { "completed" } else { "incomplete" });
    }

    /// The items as they are.
    pub(crate) fn items(&self) -> Value {
        json!(self.items)
    }

    fn tell(&mut self, kind: &'static str, mut data: Value) {
        data["output_index"] = json!(self.items.len() - 1);
        self.events.push((kind, data));
    }

    fn last(&mut self) -> &mut Value {
        let last = self.items.len() - 1;
        &mut self.items[last]
    }

    fn open(&mut self, kind: Kind) {
        let (mut item, part) = match kind {
            Kind::Message => (
                json!({
                    "id": super::id::new("msg_"), "type": "message", "status": "in_progress",
                    "role": "assistant", "content": [],
                }),
                json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []}),
            ),
            Kind::Reasoning => (
                json!({
                    "id": super::id::new("rs_"), "type": "reasoning", "status": "in_progress",
                    "summary": [], "content": [],
                }),
                json!({"type": "reasoning_text", "text": ""}),
            ),
        };
        let id = item["id"].clone();
        self.items.push(item.clone());
        self.tell("response.output_item.added", json!({ "item": item }));
        let data = json!({"item_id": id, "content_index": 0, "part": part});
        self.tell("response.content_part.added", data);
        item["content"] = json!([part]);
        *self.last() = item;
        self.open = Some(kind);
    }

    fn text(&mut self, kind: Kind, text: &str) {
        if self.open != Some(kind) {
            self.close("completed");
            self.open(kind);
        }
        let logprobs = std::mem::take(&mut self.logprobs);
        let item = self.last();
        let id = item["id"].clone();
        let part = &mut item["content"][0];
        let joined = format!("{}{text}", part["text"].as_str().unwrap_or_default());
        part["text"] = json!(joined);
        let mut data = json!({"item_id": id, "content_index": 0, "delta": text});
        let name = match kind {
            Kind::Reasoning => "response.reasoning_text.delta",
            Kind::Message => {
                if let Some(list) = part["logprobs"].as_array_mut() {
                    list.extend(logprobs.iter().cloned());
                }
                data["logprobs"] = json!(logprobs);
                "response.output_text.delta"
            }
        };
        self.tell(name, data);
    }

    fn close(&mut self, status: &str) {
        let Some(kind) = self.open.take() else { return };
        let logprobs = std::mem::take(&mut self.logprobs);
        let item = self.last();
        item["status"] = json!(status);
        if let Some(list) = item["content"][0]["logprobs"].as_array_mut() {
            list.extend(logprobs);
        }
        let item = item.clone();
        let (id, part) = (&item["id"], &item["content"][0]);
        let mut done = json!({"item_id": id, "content_index": 0, "text": part["text"]});
        match kind {
            Kind::Reasoning => self.tell("response.reasoning_text.done", done),
            Kind::Message => {
                done["logprobs"] = part["logprobs"].clone();
                self.tell("response.output_text.done", done);
            }
        }
        let done = json!({"item_id": id, "content_index": 0, "part": part});
        self.tell("response.content_part.done", done);
        self.tell("response.output_item.done", json!({ "item": item }));
    }

    fn call(&mut self, call_id: &str, name: &str, arguments: &str) {
        self.close("completed");
        // Those of the tokens of a call belong to no text.
        self.logprobs.clear();
        let id = super::id::new("fc_");
        let mut item = json!({
            "id": id, "type": "function_call", "status": "in_progress", "call_id": call_id,
            "name": name, "arguments": "",
        });
        self.items.push(item.clone());
        self.tell("response.output_item.added", json!({ "item": item }));
        let delta = json!({"item_id": id, "delta": arguments});
        self.tell("response.function_call_arguments.delta", delta);
        let done = json!({"item_id": id, "name": name, "arguments": arguments});
        self.tell("response.function_call_arguments.done", done);
        item["arguments"] = json!(arguments);
        item["status"] = json!("completed");
        *self.last() = item.clone();
        self.tell("response.output_item.done", json!({ "item": item }));
    }
}

/// What is the same in every state of one response.
#[derive(Debug)]
pub(crate) struct Frame {
    id: String,
    created: u64,
    model: String,
    temperature: f32,
    top_p: f64,
    echo: Map<String, Value>,
}

impl Frame {
    pub(crate) fn new(
        model: String,
        (temperature, top_p): (f32, f64),
        echo: Map<String, Value>,
    ) -> Self {
        let (id, created) = (super::id::new("resp_"), super::id::unix_time());
        Self { id, created, model, temperature, top_p, echo }
    }

    /// The response in a state, with the items that it has so far.
    pub(crate) fn object(&self, status: &str, output: Value) -> Value {
        let given = |name: &str| self.echo.get(name).cloned().unwrap_or(Value::Null);
        let or = |name: &str, default: Value| match given(name) {
            Value::Null => default,
            given => given,
        };
        let mut text = or("text", json!({}));
        if text["format"].is_null() {
            text["format"] = json!({"type": "text"});
        }
        let mut reasoning = or("reasoning", json!({}));
        for field in ["effort", "summary"] {
            if reasoning[field].is_null() {
                reasoning[field] = Value::Null;
            }
        }
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "completed_at": null,
            "status": status, "background": false, "error": null, "incomplete_details": null,
            "instructions": given("instructions"), "metadata": given("metadata"),
            "model": self.model, "output": output,
            "parallel_tool_calls": given("parallel_tool_calls"),
            "temperature": rounded(self.temperature), "top_p": self.top_p,
            "tool_choice": or("tool_choice", json!("auto")), "tools": or("tools", json!([])),
            "text": text, "max_output_tokens": given("max_output_tokens"),
            "previous_response_id": null, "reasoning": reasoning, "store": false,
            "truncation": "disabled", "service_tier": "default", "usage": null,
        })
    }

    /// The response at its end.
    pub(crate) fn ended(&self, output: &Output, summary: &Summary) -> Value {
        let cut = matches!(summary.finish, Finish::MaxTokens | Finish::ContextFull);
        let mut object = self.object(if cut { "incomplete" } else { "completed" }, output.items());
        if cut {
            object["incomplete_details"] = json!({"reason": "max_output_tokens"});
        } else {
            object["completed_at"] = json!(super::id::unix_time());
        }
        let (input, made) = (summary.prompt_tokens, summary.generated_tokens);
        object["usage"] = json!({
            "input_tokens": input,
            "input_tokens_details": {"cached_tokens": summary.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input + made,
        });
        object
    }
}

/// A number of single precision as people write it.
fn rounded(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, |number| json!(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_and_their_events_agree() {
        let mut output = Output::default();
        output.push(&Part::Text("Let ".to_owned()));
        output.push(&Part::Text("me".to_owned()));
        let (id, name) = ("call_1".to_owned(), "f".to_owned());
        output.push(&Part::Call { index: 0, id, name, arguments: "{\"a\":1}".to_owned() });
        output.finish(true);
        let events = output.events();
        let kinds: Vec<&str> = events.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(
            kinds,
            [
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.output_item.added",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.output_item.done",
            ]
        );
        assert_eq!(events[6].1["item"], output.items()[0]);
        assert_eq!(events[10].1["item"], output.items()[1]);
        assert_eq!(events[10].1["output_index"], 1);
        assert_eq!(output.items()[0]["content"][0]["text"], "Let me");
        let mut thought = Output::default();
        thought.push(&Part::Reasoning("Hm.".to_owned()));
        thought.push(&Part::Text("Yes.".to_owned()));
        thought.finish(true);
        let kinds = [&thought.items()[0]["type"], &thought.items()[1]["type"]].map(Value::clone);
        assert_eq!(kinds, [json!("reasoning"), json!("message")]);
        assert_eq!(thought.items()[0]["content"][0]["text"], "Hm.");
        let mut empty = Output::default();
        empty.finish(false);
        assert_eq!(empty.items()[0]["status"], "incomplete");
    }
}
