//! Tokenizers and chat templates against the reference data.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use trefoil_engine::text::template::{ChatTemplate, CivilTime, Conversation, TemplateError};
use trefoil_engine::text::{DecodeOptions, Detokenizer, EncodeOptions, StopStrings, Tokenizer};
use trefoil_graph::{ModelFile, Storage};
use trefoil_tests::golden;

/// The lines of a file of JSON objects.
fn json_lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Vec<T> {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), index + 1))
        })
        .collect()
}

#[derive(Deserialize)]
struct TemplateCase {
    template: String,
    messages: Value,
    tools: Option<Value>,
    add_generation_prompt: bool,
    bos_token: String,
    eos_token: String,
    date: String,
    #[serde(default)]
    extra: Map<String, Value>,
    expected: Option<String>,
    error: Option<String>,
    error_kind: Option<String>,
}

/// Number of characters that two texts share from the start.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count()
}

/// A hundred characters from `from` on.
fn excerpt(text: &str, from: usize) -> String {
    text.chars().skip(from).take(100).collect()
}

fn civil_time(text: &str) -> CivilTime {
    let fields: Vec<u32> = text
        .split(['-', 'T', ':'])
        .map(|field| field.parse().expect("a date such as 2026-02-03T14:15:16"))
        .collect();
    let [year, month, day, hour, minute, second] = fields[..] else { panic!("a date: {text}") };
    CivilTime::new([year, month, day], [hour, minute, second]).expect("a date that exists")
}

/// Every case renders to the reference text, byte for byte; a template's own refusal has its
/// words; where Python fails for another reason, rendering fails too.
#[test]
fn chat_templates_render_as_the_reference_does() {
    let folder = golden::part("templates");
    let cases: Vec<TemplateCase> = json_lines(&folder.join("cases.jsonl"));
    assert!(!cases.is_empty());
    let mut sources = BTreeMap::new();
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let source = sources.entry(&case.template).or_insert_with(|| {
            std::fs::read_to_string(folder.join("templates").join(&case.template))
                .expect("the template of a case is there")
        });
        let result = ChatTemplate::new(source, &case.bos_token, &case.eos_token).and_then(|t| {
            t.render(&Conversation {
                messages: &case.messages,
                tools: case.tools.as_ref(),
                add_generation_prompt: case.add_generation_prompt,
                variables: Some(&case.extra),
                now: civil_time(&case.date),
            })
        });
        let right = match (&result, &case.expected, case.error_kind.as_deref()) {
            (Ok(text), Some(expected), None) => text == expected,
            (Err(TemplateError::Refused { message }), None, Some("raise_exception")) => {
                Some(message) == case.error.as_ref()
            }
            (Err(TemplateError::Failed { .. }), None, Some(kind)) => kind != "raise_exception",
            _ => false,
        };
        if !right {
            let expected = case.expected.as_ref().or(case.error.as_ref());
            let from = match (expected, &result) {
                (Some(expected), Ok(text)) => common_prefix(expected, text).saturating_sub(20),
                _ => 0,
            };
            wrong.push(format!(
                "case {} of {}, from character {from}\n  expected {:?}\n  got      {:?}",
                index + 1,
                case.template,
                expected.map(|text| excerpt(text, from)),
                result.as_ref().map(|text| excerpt(text, from)),
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[derive(Deserialize)]
struct TextCase {
    text: String,
    ids: Vec<u32>,
    add_special: bool,
    parse_special: bool,
}

/// The tokenizer of a GGUF file, which may be compressed.
fn tokenizer_of(path: &Path) -> Tokenizer {
    let label = path.display().to_string();
    let file = if path.extension().is_some_and(|extension| extension == "gz") {
        let mut bytes = Vec::new();
        let packed = std::fs::File::open(path).expect("the file is there");
        flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).expect("it is gzip");
        ModelFile::from_storage(Arc::new(Storage::Owned(bytes)), &label)
    } else {
        ModelFile::open(path)
    };
    let file = file.unwrap_or_else(|error| panic!("{label}: {error}"));
    Tokenizer::from_metadata(&file.metadata).unwrap_or_else(|error| panic!("{label}: {error}"))
}

/// Whether decoding gives the text back.
#[derive(Clone, Copy, PartialEq)]
enum Reversible {
    Always,
    /// All but U+2581, which comes back as a space.
    ExceptMetaspace,
    Never,
}

/// Every line of a file of texts encodes to the reference ids, and these decode to the text.
fn check_texts(name: &str, tokenizer: &Tokenizer, texts: &Path, reversible: Reversible) {
    let cases: Vec<TextCase> = json_lines(texts);
    assert!(!cases.is_empty());
    // control characters that a vocabulary without all bytes has no token for
    let lost: Vec<char> = ('\0'..'\u{80}')
        .filter(|c| tokenizer.encode(&c.to_string(), EncodeOptions::default()).is_empty())
        .collect();
    assert!(
        reversible == Reversible::Never || lost.iter().all(|c| c.is_control()),
        "{name} has no token for {lost:?}"
    );
    let mut wrong = Vec::new();
    for case in &cases {
        let TextCase { text, ids, add_special, parse_special } = case;
        let options = EncodeOptions { add_special: *add_special, parse_special: *parse_special };
        let got = tokenizer.encode(text, options);
        if got != *ids {
            wrong.push(format!("{text:?} {options:?}\n  expected {ids:?}\n  got      {got:?}"));
        }
        // what was put around the text is no part of it
        let plain = tokenizer.encode(text, EncodeOptions { add_special: false, ..options });
        let back = tokenizer.decode(&plain, DecodeOptions { special: true });
        let expected = match reversible {
            Reversible::Always => text.replace(lost.as_slice(), ""),
            Reversible::ExceptMetaspace => text.replace('\u{2581}', " "),
            Reversible::Never => continue,
        };
        if back != expected {
            wrong.push(format!("{text:?} {options:?}\n  decoded  {back:?} from {plain:?}"));
        }
    }
    assert!(wrong.is_empty(), "{name}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn vocabularies_encode_as_the_reference_does() {
    let folder = golden::part("vocab");
    let mut checked = 0;
    for (name, reversible) in [
        ("llama-bpe", Reversible::Always),
        ("qwen2", Reversible::Always),
        ("gpt-2", Reversible::Always),
        ("llama-spm", Reversible::ExceptMetaspace),
        ("bert-bge", Reversible::Never),
        ("gemma-4", Reversible::ExceptMetaspace),
    ] {
        let file = folder.join(format!("{name}.gguf.gz"));
        if golden::shared().is_none() && !file.exists() {
            continue; // not in the carried part
        }
        let tokenizer = tokenizer_of(&file);
        let texts = folder.join(format!("{name}.texts.jsonl"));
        check_texts(name, &tokenizer, &texts, reversible);
        checked += 1;
    }
    assert!(checked > 0, "no vocabulary was found in {}", folder.display());
}

/// Files of real models, where `TREFOIL_REAL_MODELS` names a folder that holds them.
#[test]
fn real_models_encode_as_the_reference_does() {
    let (Some(shared), Some(models)) = (golden::shared(), std::env::var_os("TREFOIL_REAL_MODELS"))
    else {
        return;
    };
    let folder = shared.join("golden/real");
    for (name, reversible) in
        [("smollm2", Reversible::Always), ("gemma3-270m", Reversible::ExceptMetaspace)]
    {
        let facts = std::fs::read_to_string(folder.join(format!("{name}.json")))
            .expect("facts about the model are there");
        let facts: Value = serde_json::from_str(&facts).expect("they are JSON");
        // a file in several parts is named after what they make together
        let file = &facts["source"]["file"];
        let file = file.as_str().or(file[0].as_str()).expect("they name the file");
        let file = Path::new(file.trim_end_matches(".part00"));
        let file = file.file_name().expect("it has a name");
        let tokenizer = tokenizer_of(&PathBuf::from(&models).join(file));
        let texts = folder.join(format!("{name}.texts.jsonl"));
        check_texts(name, &tokenizer, &texts, reversible);
    }
}

/// `tokenizer.json` and the GGUF file of each tiny model give the ids of its prompt.
#[test]
fn tiny_models_encode_their_prompt() {
    let folder = golden::part("models");
    let mut checked = 0;
    for entry in std::fs::read_dir(&folder).into_iter().flatten() {
        let model = entry.expect("the folder can be read").path();
        let golden = std::fs::read(model.join("golden.safetensors")).expect("results are there");
        let (_, header) = safetensors::SafeTensors::read_metadata(&golden).expect("a header");
        let text = &header.metadata().as_ref().expect("facts")["text"];
        let tensors = safetensors::SafeTensors::deserialize(&golden).expect("tensors");
        let ids: Vec<u32> = tensors
            .tensor("ids")
            .expect("the prompt")
            .data()
            .chunks_exact(8)
            .map(|bytes| i64::from_le_bytes(bytes.try_into().expect("eight bytes")))
            .map(|id| u32::try_from(id).expect("a token id"))
            .collect();
        let from_json = Tokenizer::from_folder(&model)
            .unwrap_or_else(|error| panic!("{}: {error}", model.display()));
        let mut tokenizers = vec![from_json];
        for file in ["model-f32.gguf", "model-mxfp4.gguf"].map(|name| model.join(name)) {
            if file.exists() {
                tokenizers.push(tokenizer_of(&file));
            }
        }
        for tokenizer in tokenizers {
            let options = EncodeOptions { add_special: true, parse_special: true };
            assert_eq!(tokenizer.encode(text, options), ids, "{}", model.display());
        }
        checked += 1;
    }
    assert!(checked > 0 || golden::shared().is_none());
}

/// Token by token, the text of a reply is the one that decoding gives at once, and every piece is
/// whole characters; a stop string ends it wherever token borders lie.
#[test]
fn replies_are_made_token_by_token() {
    let folder = golden::part("vocab");
    let name = ["qwen2", "gpt-2"]
        .into_iter()
        .find(|name| folder.join(format!("{name}.gguf.gz")).exists())
        .expect("a vocabulary with all bytes is there");
    let tokenizer = tokenizer_of(&folder.join(format!("{name}.gguf.gz")));
    let special = DecodeOptions { special: true };
    for case in json_lines::<TextCase>(&folder.join(format!("{name}.texts.jsonl"))) {
        let ids = tokenizer.encode(&case.text, EncodeOptions::default());
        let whole: Vec<u8> =
            ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
        let whole = String::from_utf8(whole).expect("the bytes of a text are a text");
        let reply = |stops: StopStrings| {
            let mut detokenizer = Detokenizer::new(tokenizer.clone(), special, stops);
            let mut text = String::new();
            for &id in &ids {
                let piece = detokenizer.push(id);
                text.push_str(piece.text);
                if piece.stop.is_some() {
                    return text;
                }
            }
            text.push_str(detokenizer.finish().text);
            text
        };
        assert_eq!(reply(StopStrings::default()), whole);
        // any part of the text may be a stop string
        let starts: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
        for (&start, &end) in starts.iter().zip(starts.iter().skip(3)).step_by(5) {
            let stop = &whole[start..end];
            let first = whole.find(stop).expect("it is a part");
            let stops = StopStrings::new(&[stop]).expect("a valid stop string");
            assert_eq!(reply(stops), whole[..first], "{stop:?} in {whole:?}");
        }
    }
}
