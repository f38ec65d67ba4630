//! POST /v1/embeddings: an encoder from a Hugging Face folder and the same as an ONNX model.

use serde_json::{Value, json};
use trefoil_graph::ModelFile;
use trefoil_tests::onnx::{EncoderForm, write_encoder};

use crate::support::encoder::{self, Case, copy_tokenizer, cosine, embeddings};
use crate::support::http::Response;
use crate::support::server::Server;

const PATH: &str = "/v1/embeddings";

fn ask(server: &Server, body: &Value) -> Response {
    server.call("POST", PATH).json(body).send()
}

#[test]
fn embeddings_follow_the_contract() {
    let scratch = tempfile::tempdir().expect("a folder");
    let onnx = scratch.path().join("bert-onnx");
    let model = ModelFile::open(&encoder::folder()).expect("opens");
    write_encoder(&model, EncoderForm::Plain, &onnx);
    copy_tokenizer(&encoder::folder(), &onnx);
    let folder = encoder::folder();
    let models = [&folder, &onnx].map(|path| path.to_str().expect("a plain path"));
    let server = Server::of(&[models[0], models[1], "demo"], &[]);
    let case = encoder::case();
    for model in ["bert", "bert-onnx"] {
        values(&server, model, &case);
    }
    refusals(&server, &case);
    described(&server);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

fn values(server: &Server, model: &str, case: &Case) {
    let answer = ask(server, &json!({"model": model, "input": case.text, "user": "u"})).ok();
    let count = case.ids.len();
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!(model)));
    assert_eq!(answer["usage"], json!({"prompt_tokens": count, "total_tokens": count}));
    let one = embeddings(&answer);
    assert_eq!(one.len(), 1);
    assert!(cosine(&one[0], &case.embedding) > 0.99999, "{model}");
    let length: f32 = one[0].iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");

    // The same alone, among others, and as token ids.
    let input = json!(["short", case.text, "another text"]);
    let many = embeddings(&ask(server, &json!({"model": model, "input": input})).ok());
    assert_eq!(many.len(), 3);
    assert!(cosine(&many[1], &one[0]) > 0.99999, "{model}");
    assert!(cosine(&many[0], &many[2]) < 0.9999, "texts differ");
    let ids = embeddings(&ask(server, &json!({"model": model, "input": case.ids})).ok());
    assert_eq!(ids, one);
    let lists = json!([[1, 5, 2], case.ids]);
    let lists = embeddings(&ask(server, &json!({"model": model, "input": lists})).ok());
    assert_eq!(lists[1], one[0]);

    // Many of all lengths: several steps, each embedding bit for bit as alone.
    let many: Vec<Vec<u32>> = (0..40)
        .map(|i| (0..1 + i * 7 % 60).map(|at| (i * 31 + at * 17) % 90 + 5).collect())
        .collect();
    let together = embeddings(&ask(server, &json!({"model": model, "input": many})).ok());
    assert_eq!(together.len(), many.len());
    for (text, together) in many.iter().zip(&together).step_by(7) {
        let alone = embeddings(&ask(server, &json!({"model": model, "input": [text]})).ok());
        assert_eq!(&alone[0], together, "{model}: {} tokens", text.len());
    }

    // What the official clients ask for.
    let body = json!({"model": model, "input": case.text, "encoding_format": "base64"});
    let answer = ask(server, &body).ok();
    let text = answer["data"][0]["embedding"].as_str().expect("a text");
    assert_eq!(from_base64(text), one[0]);
}

/// Numbers in single precision out of base64, read bit by bit.
fn from_base64(text: &str) -> Vec<f32> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} is no digit"),
    };
    let digits = text.trim_end_matches('=').bytes().map(digit);
    let bits: Vec<u8> =
        digits.flat_map(|digit| (0..6).rev().map(move |bit| digit >> bit & 1)).collect();
    let byte = |bits: &[u8]| bits.iter().fold(0u8, |byte, bit| byte << 1 | bit);
    let bytes: Vec<u8> = bits.chunks_exact(8).map(byte).collect();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn refusals(server: &Server, case: &Case) {
    let error = |extra: Value, status, code: &str| {
        let mut body = json!({"model": "bert", "input": "a"});
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        ask(server, &body).error(status, code)
    };
    error(json!({"input": ""}), 400, "invalid_value");
    error(json!({"input": []}), 400, "invalid_value");
    error(json!({"input": ["a", 1]}), 400, "invalid_type");
    error(json!({"input": null}), 400, "missing_required_parameter");
    error(json!({"input": [4_000_000]}), 400, "invalid_value");
    error(json!({"encoding_format": "int8"}), 400, "invalid_value");
    error(json!({"dimensions": 4}), 400, "unsupported_parameter");
    error(json!({"model": "nothing"}), 404, "model_not_found");
    error(json!({"model": "demo"}), 400, "unsupported_value");
    let long = vec![case.ids[1]; 100_000];
    let answer = error(json!({"input": long}), 400, "context_length_exceeded");
    assert_eq!(answer["param"], "input", "{answer}");
    let chat = json!({"model": "bert", "messages": [{"role": "user", "content": "hi"}]});
    server.chat(&chat).error(400, "unsupported_value");
    let ignored = ask(server, &json!({"model": "bert", "input": "a", "colour": "red"}));
    assert_eq!(ignored.header("x-trefoil-ignored"), Some("colour"));
}

fn described(server: &Server) {
    let model = server.get("/v1/models/bert-onnx").ok();
    let facts = &model["trefoil"];
    assert_eq!(facts["format"], "onnx");
    assert_eq!(facts["capabilities"], json!(["embeddings"]));
    let health = server.get("/health").ok();
    let loaded = health["all_models_loaded"].as_array().expect("a list");
    assert_eq!(loaded.iter().filter(|model| model["type"] == "embedding").count(), 2);
    let tokens = server.metric("trefoil_prompt_tokens_total{model=\"bert\",source=\"computed\"}");
    assert!(tokens > 100.0, "{tokens}");
}
