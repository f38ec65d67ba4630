//! Tokenizers from `tokenizer.json` against the tokenizers library, which defines the format.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::Tokenizer as Library;
use trefoil_engine::text::{DecodeOptions, EncodeOptions, Tokenizer};
use trefoil_tests::golden;

/// The texts of all vocabularies' test files.
fn texts() -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(golden::part("vocab")).expect("texts are there") {
        let path = entry.expect("the folder can be read").path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            let lines = std::fs::read_to_string(&path).expect("a text file");
            for line in lines.lines() {
                let case: Value = serde_json::from_str(line).expect("a line of JSON");
                texts.push(case["text"].as_str().expect("a text").to_owned());
            }
        }
    }
    texts.sort();
    texts.dedup();
    assert!(texts.len() > 300);
    texts
}

/// The same ids, with the tokens around the text; `texts` are put through both.
fn compare(name: &str, folder: &Path, texts: &[String]) -> Tokenizer {
    let tokenizer = Tokenizer::from_folder(folder).unwrap_or_else(|e| panic!("{name}: {e}"));
    let library = Library::from_file(folder.join("tokenizer.json")).expect("the library loads it");
    for text in texts {
        let expected = library.encode(text.as_str(), true).expect("the library encodes");
        let options = EncodeOptions { add_special: true, parse_special: true };
        assert_eq!(tokenizer.encode(text, options), expected.get_ids(), "{name}: {text:?}");
    }
    tokenizer
}

#[test]
fn tiny_models_encode_as_the_library_does() {
    let texts = texts();
    let mut checked = 0;
    for entry in std::fs::read_dir(golden::part("models")).expect("models are there") {
        let folder = entry.expect("the folder can be read").path();
        compare(&folder.display().to_string(), &folder, &texts);
        checked += 1;
    }
    assert!(checked > 0);
}

/// A vocabulary in SentencePiece's style: bytes, characters, some merges.
fn metaspace_model() -> Value {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.push("\u{2581}".to_owned());
    tokens.extend(('a'..='z').chain('A'..='Z').chain('0'..='9').map(String::from));
    let mut merges = Vec::new();
    for (left, right) in [
        ("t", "h"),
        ("th", "e"),
        ("\u{2581}", "the"),
        ("i", "n"),
        ("\u{2581}", "a"),
        ("\u{2581}", "\u{2581}"),
        ("o", "r"),
        ("l", "l"),
        ("H", "e"),
        ("He", "ll"),
        ("\u{2581}", "Hell"),
        ("1", "2"),
    ] {
        tokens.push(format!("{left}{right}"));
        merges.push(json!([left, right]));
    }
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().zip(0..).map(|(token, id): (_, u32)| (token.clone(), id.into())).collect();
    json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
        "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": merges,
    })
}

fn added(id: u32, content: &str, more: Value) -> Value {
    let mut token = json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    for (key, value) in more.as_object().expect("fields") {
        token[key] = value.clone();
    }
    token
}

#[test]
fn sentence_piece_styles_encode_as_the_library_does() {
    let mut texts = texts();
    for text in
        ["<s>Hello", "Hello <s> the", " <x> the", "a<y>  the", "the <z>the", "<w> w<w>w <w>", ""]
    {
        texts.push(text.to_owned());
    }
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    let metaspace = |scheme: &str, split: bool| {
        json!({
            "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme,
            "split": split,
        })
    };
    let styles = [
        ("legacy", json!({"type": "Sequence", "normalizers": [prepend, replace]}), Value::Null),
        ("plain", replace.clone(), Value::Null),
        ("first", Value::Null, metaspace("first", false)),
        ("always", Value::Null, metaspace("always", true)),
        ("never", Value::Null, metaspace("never", true)),
    ];
    for (name, normalizer, pre_tokenizer) in styles {
        let strips = !matches!(name, "plain" | "never");
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if strips {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [
                added(0, "<unk>", json!({})),
                added(1, "<s>", json!({})),
                added(2, "</s>", json!({})),
                added(334, "<x>", json!({"lstrip": true})),
                added(335, "<y>", json!({"rstrip": true})),
                added(336, "<z>", json!({"special": false})),
                added(337, "<w>", json!({"special": false, "single_word": true})),
            ],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                           {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {
                    "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                    "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
                },
            },
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": metaspace_model(),
        });
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, value: &Value| {
            std::fs::write(folder.path().join(name), value.to_string()).expect("can be written");
        };
        write("tokenizer.json", &file);
        write("tokenizer_config.json", &json!({"bos_token": "<s>", "eos_token": "</s>"}));
        let tokenizer = compare(name, folder.path(), &texts);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
        assert!(tokenizer.add_bos() && tokenizer.is_end_of_generation(2));
        assert_eq!(tokenizer.vocab_size(), 338);
        // text without special tokens comes back
        for text in texts.iter().filter(|text| !text.contains(['<', '\u{2581}'])) {
            let ids = tokenizer.encode(text, EncodeOptions::default());
            let expected = match name {
                // these two put a space before text that does not begin with one only
                "first" | "always" if text.starts_with(' ') => &text[1..],
                _ => text,
            };
            assert_eq!(tokenizer.decode(&ids, DecodeOptions::default()), *expected, "{name}");
        }
        // names of control tokens are text unless asked for, those of user-defined ones never
        let plain = tokenizer.encode("<s><z>", EncodeOptions::default());
        assert!(!plain.contains(&1) && plain.contains(&336), "{name}: {plain:?}");
    }
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path();
    assert!(Tokenizer::from_folder(path).is_err());
    let model = metaspace_model();
    let far = added(u32::MAX, "<far>", json!({}));
    for file in [
        json!([]),
        json!({"model": {"type": "BPE", "vocab": {}, "merges": []}}),
        json!({"model": {"type": "BPE", "vocab": {"a": 4_000_000_000_u32}, "merges": []}}),
        json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}),
        json!({"model": {"type": "Other", "vocab": {"a": 0}}}),
        json!({"model": model, "pre_tokenizer": {"type": "Other"}}),
        json!({"model": model, "added_tokens": [far]}),
    ] {
        let text = file.to_string();
        std::fs::write(path.join("tokenizer.json"), &text).expect("can be written");
        let result = Tokenizer::from_folder(path);
        assert!(result.is_err(), "{}", &text[..text.len().min(200)]);
    }
}
