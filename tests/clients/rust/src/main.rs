//! What the async-openai client makes of the server's answers.
//!
//! Run by the end-to-end tests, with JSON on standard input: url and keyed_url of two servers of the demo
//! model (the second asks for key), embeddings_url of a server of the encoder bert, prompt and reply (text
//! of the greedy answer), ids (tokens of the prompt as the chat template writes it).

use std::io::Read;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use serde_json::{Value, json};
use tokio_stream::StreamExt;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What the tests tell.
struct Facts(Value);

impl Facts {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_else(|| panic!("{name} is told"))
    }

    fn client(&self, url: &str, key: &str) -> Client<OpenAIConfig> {
        let config = OpenAIConfig::new().with_api_base(self.text(url)).with_api_key(key);
        Client::with_config(config)
    }

    /// A greedy chat request with more fields, as one of the client's own types.
    fn chat<T: serde::de::DeserializeOwned>(&self, more: Value) -> T {
        let body = json!({"model": "demo", "temperature": 0.0,
            "messages": [{"role": "user", "content": self.text("prompt")}]});
        joined(body, more)
    }
}

fn joined<T: serde::de::DeserializeOwned>(mut body: Value, more: Value) -> T {
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    serde_json::from_value(body).expect("the client has a field for each")
}

async fn chat(facts: &Facts) -> Outcome {
    let client = facts.client("url", "none");
    let answer = client.chat().create(facts.chat(json!({}))).await?;
    let choice = &answer.choices[0];
    assert_eq!(choice.message.content.as_deref(), Some(facts.text("reply")));
    assert_eq!(answer.object, "chat.completion");
    let usage = answer.usage.expect("counts");
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    let two = facts.chat(json!({"n": 2, "max_completion_tokens": 2, "seed": 3}));
    assert_eq!(client.chat().create(two).await?.choices.len(), 2);
    Ok(())
}

async fn streaming(facts: &Facts) -> Outcome {
    let client = facts.client("url", "none");
    let request = facts.chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut stream = client.chat().create_stream(request).await?;
    let (mut text, mut usage) = (String::new(), None);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if let Some(choice) = chunk.choices.first() {
            text.push_str(choice.delta.content.as_deref().unwrap_or_default());
        }
        usage = chunk.usage;
    }
    assert_eq!(text, facts.text("reply"));
    assert!(usage.expect("the last chunk has counts").completion_tokens > 0);
    Ok(())
}

async fn logprobs(facts: &Facts) -> Outcome {
    let client = facts.client("url", "none");
    let more = json!({"logprobs": true, "top_logprobs": 3, "max_completion_tokens": 3});
    let answer = client.chat().create(facts.chat(more)).await?;
    let choice = &answer.choices[0];
    let content = choice.logprobs.as_ref().and_then(|l| l.content.as_ref()).expect("a list");
    assert_eq!(content.len(), 3);
    let mut bytes = Vec::new();
    for token in content {
        assert_eq!(token.top_logprobs.len(), 3);
        assert_eq!(token.logprob, token.top_logprobs[0].logprob);
        bytes.extend(token.bytes.as_ref().expect("bytes"));
    }
    assert_eq!(String::from_utf8(bytes)?, choice.message.content.clone().unwrap_or_default());
    Ok(())
}

async fn completions(facts: &Facts) -> Outcome {
    let client = facts.client("url", "none");
    let body = json!({"model": "demo", "temperature": 0.0, "max_tokens": 100,
        "prompt": facts.0["ids"]});
    let answer = client.completions().create(joined(body.clone(), json!({"logprobs": 2}))).await?;
    assert_eq!(answer.choices[0].text, facts.text("reply"));
    assert!(answer.choices[0].logprobs.is_some());
    let request = joined(body, json!({"stream": true}));
    let mut stream = client.completions().create_stream(request).await?;
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        text.extend(chunk?.choices.iter().map(|choice| choice.text.as_str()));
    }
    assert_eq!(text, facts.text("reply"));
    Ok(())
}

async fn embeddings(facts: &Facts) -> Outcome {
    let client = facts.client("embeddings_url", "none");
    let body = json!({"model": "bert", "input": ["a lemon tree", "a fast car"]});
    let plain = client.embeddings().create(joined(body.clone(), json!({}))).await?;
    let request = joined(body, json!({"encoding_format": "base64"}));
    let packed = client.embeddings().create_base64(request).await?;
    assert_eq!(plain.data.len(), 2);
    for (plain, packed) in plain.data.iter().zip(packed.data) {
        let packed: Vec<f32> = packed.embedding.into();
        assert_eq!(plain.embedding.len(), packed.len());
        let same = plain.embedding.iter().zip(&packed).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(same, "both forms say the same");
        let length: f32 = packed.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
    }
    Ok(())
}

async fn models(facts: &Facts) -> Outcome {
    let client = facts.client("url", "none");
    let listed = client.models().list().await?;
    assert_eq!(listed.data.iter().map(|model| &model.id).collect::<Vec<_>>(), ["demo"]);
    assert_eq!(client.models().retrieve("demo").await?.owned_by, "trefoil");
    Ok(())
}

/// The status, code and field of a call that must fail.
#[track_caller]
fn refused<T>(result: Result<T, OpenAIError>, status: u16, code: &str, param: Option<&str>) {
    match result {
        Err(OpenAIError::ApiError(error)) => {
            assert_eq!(error.status_code.as_u16(), status, "{error:?}");
            assert_eq!(error.api_error.code.as_deref(), Some(code), "{error:?}");
            assert_eq!(error.api_error.param.as_deref(), param, "{error:?}");
        }
        Err(other) => panic!("the client cannot read the error: {other}"),
        Ok(_) => panic!("expected {code}"),
    }
}

async fn errors(facts: &Facts) -> Outcome {
    let client = facts.client("url", "none");
    let chat = client.chat();
    let wrong = chat.create(facts.chat(json!({"top_p": 9.0}))).await;
    refused(wrong, 400, "invalid_value", Some("top_p"));
    let long = chat.create(facts.chat(json!({"max_completion_tokens": 100_000}))).await;
    refused(long, 400, "context_length_exceeded", Some("messages"));
    refused(client.models().retrieve("dmo").await, 404, "model_not_found", Some("model"));
    let keyed = facts.client("keyed_url", facts.text("key"));
    assert_eq!(keyed.models().list().await?.data.len(), 1);
    let wrong = facts.client("keyed_url", "wrong").models().list().await;
    refused(wrong, 401, "invalid_api_key", None);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let facts = Facts(serde_json::from_str(&text)?);
    chat(&facts).await?;
    streaming(&facts).await?;
    logprobs(&facts).await?;
    completions(&facts).await?;
    embeddings(&facts).await?;
    models(&facts).await?;
    errors(&facts).await?;
    println!("ok");
    Ok(())
}
