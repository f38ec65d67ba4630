//! Real models against the results of other programs (`tests/data/real`, made by transformers in
//! float32 on the dequantised weights). Runs where `TREFOIL_REAL_MODELS` names the folder that
//! `tests/real/fetch.sh` fills.

use std::path::PathBuf;

use serde_json::{Value, json};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::evaluate::{log_sum_exp, top};
use trefoil_engine::kv::KvType;
use trefoil_engine::loaded::Loaded;
use trefoil_engine::model::ModelOptions;
use trefoil_engine::runner::Outputs;
use trefoil_engine::text::DecodeOptions;

use crate::clients::{python, run_script};
use crate::support::demo::ids;
use crate::support::program::trefoil;
use crate::support::server::Server;

/// Largest distance of a logit, and of the sum, in exact arithmetic.
const LOGIT: f64 = 2e-3;
/// Largest distance of the mean loss: exact, and with rounded activations.
const LOSS: (f64, f64) = (1e-4, 0.02);

/// Largest normalised error of logits where activations are rounded to 8 bits.
const ROUNDED_NMSE: f64 = 5e-3;

/// A model with its reference results.
struct Case {
    file: PathBuf,
    facts: Value,
}

impl Case {
    /// `None` where the models were not fetched.
    fn open(file: &str, facts: &str) -> Option<Self> {
        let file = PathBuf::from(std::env::var_os("TREFOIL_REAL_MODELS")?).join(file);
        assert!(file.exists(), "{}: expected it, see tests/real/fetch.sh", file.display());
        let path = trefoil_tests::golden::data().join("real").join(facts);
        let facts = std::fs::read_to_string(path).expect("the repository carries it");
        Some(Self { file, facts: serde_json::from_str(&facts).expect("it is JSON") })
    }

    fn smollm2() -> Option<Self> {
        Self::open("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2.json")
    }

    fn gemma3() -> Option<Self> {
        Self::open("gemma-3-270m-q4_k_m.gguf", "gemma3-270m.json")
    }

    fn path(&self) -> &str {
        self.file.to_str().expect("a plain path")
    }

    fn load(&self, exact: bool) -> Loaded {
        let backends = Backends::detect(BackendOptions { exact, ..BackendOptions::default() });
        let kv_type = if exact { KvType::F32 } else { KvType::F16 };
        let options = ModelOptions { kv_type, context: Some(256), ..ModelOptions::default() };
        Loaded::open(self.path(), &backends, &options, self.template()).expect("the model loads")
    }

    /// The pre-trained Gemma has no chat template of its own: its facts bring one.
    fn template(&self) -> Option<&str> {
        self.facts["template"].as_str().filter(|template| template.contains("{{"))
    }

    fn prompts(&self) -> &[Value] {
        self.facts["prompts"].as_array().expect("a list")
    }
}

/// The prompt as this program makes it: rendered, tokenised.
fn prompt_ids(model: &Loaded, prompt: &Value) -> Vec<u32> {
    let Some(messages) = prompt.get("messages").filter(|messages| !messages.is_null()) else {
        return model.text.encode_raw(prompt["prompt"].as_str().expect("a text"));
    };
    let rendered = model.text.render(messages, None).expect("the template takes them");
    assert_eq!(rendered, prompt["text"], "the rendered text");
    model.text.encode_rendered(&rendered)
}

/// The argmax continuation; end tokens do not stop it.
fn greedy(model: &mut Loaded, prompt: &[u32], steps: usize) -> Vec<u32> {
    let mut sequence = model.runner.begin(model.runner.context());
    let mut made = Vec::new();
    let mut input = prompt.to_vec();
    while made.len() < steps {
        let mut best = 0;
        let last = |_, logits: &[f32]| best = top(logits, 1)[0];
        model.runner.feed(&mut sequence, &input, Outputs::Last, last).expect("the step works");
        made.push(best);
        input = vec![best];
    }
    model.runner.end(sequence);
    made
}

/// The logits at each step of a continuation that is fed whole.
fn on_the_way(model: &mut Loaded, prompt: &[u32], continuation: &[u32]) -> Vec<Vec<f32>> {
    let way = [prompt, &continuation[..continuation.len() - 1]].concat();
    let mut sequence = model.runner.begin(model.runner.context());
    let mut rows = Vec::new();
    let from = Outputs::From(prompt.len() - 1);
    let each = |_, logits: &[f32]| rows.push(logits.to_vec());
    model.runner.feed(&mut sequence, &way, from, each).expect("the step works");
    model.runner.end(sequence);
    rows
}

fn exact(case: &Case) {
    let mut model = case.load(true);
    for prompt in case.prompts() {
        let tokens = prompt_ids(&model, prompt);
        assert_eq!(tokens, ids(&prompt["ids"]));
        let mut rows = vec![Vec::new(); tokens.len()];
        let mut sequence = model.runner.begin(model.runner.context());
        let keep = |position: usize, logits: &[f32]| rows[position] = logits.to_vec();
        model.runner.feed(&mut sequence, &tokens, Outputs::All, keep).expect("the step works");
        model.runner.end(sequence);
        let mut compared = 0;
        for want in prompt["logits"].as_array().expect("a list") {
            let position = want["position"].as_u64().expect("a number") as usize;
            let row = &rows[position];
            for pair in want["top5"].as_array().expect("a list") {
                let id = pair[0].as_u64().expect("an id") as usize;
                let (value, got) = (pair[1].as_f64().expect("a number"), f64::from(row[id]));
                assert!((value - got).abs() < LOGIT, "{position} {id}: {got} for {value}");
                compared += 1;
            }
            let (sum, got) = (want["logsumexp"].as_f64().expect("a number"), log_sum_exp(row));
            assert!((sum - got).abs() < LOGIT, "{position}: {got} for {sum}");
        }
        assert!(compared >= 10, "there is something to compare");
        let want = ids(&prompt["greedy"]);
        assert_eq!(greedy(&mut model, &tokens, want.len()), want, "{}", prompt["text"]);
    }
}

/// Rounded activations: single logits move by more than most margins are wide, in every program
/// that rounds, so that paths part by chance. What holds is the error over all logits, and that
/// the best token rarely changes.
fn rounded(case: &Case) {
    let (mut model, mut reference) = (case.load(false), case.load(true));
    let (mut error, mut norm, mut same, mut all) = (0.0, 0.0, 0, 0);
    for prompt in case.prompts() {
        let tokens = ids(&prompt["ids"]);
        let want = ids(&prompt["greedy"]);
        let (got, exact) =
            (on_the_way(&mut model, &tokens, &want), on_the_way(&mut reference, &tokens, &want));
        for ((got, exact), want) in got.iter().zip(&exact).zip(&want) {
            error += got.iter().zip(exact).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            norm += exact.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            assert_eq!(top(exact, 1)[0], *want, "the exact way is the reference's");
            same += usize::from(top(got, 1)[0] == *want);
            all += 1;
        }
        // One by one or all at once: the same arithmetic, to the last bit.
        let path = greedy(&mut model, &tokens, want.len());
        let best = on_the_way(&mut model, &tokens, &path);
        let best: Vec<u32> = best.iter().map(|row| top(row, 1)[0]).collect();
        assert_eq!(best, path, "{}", prompt["text"]);
    }
    assert!(error / norm < ROUNDED_NMSE, "{}", error / norm);
    assert!(same as f64 >= 0.97 * all as f64, "{same} of {all}");
}

fn loss(case: &Case, flags: &[&str], most: f64) {
    let text = trefoil_tests::golden::data().join("real/ppl.txt");
    let text = text.to_str().expect("a plain path");
    let args = [&["perplexity", case.path(), text, "--json"], flags].concat();
    let result = trefoil(&args).json();
    let facts = &case.facts["perplexity"];
    assert_eq!((&result["tokens"], &result["windows"]), (&facts["tokens"], &facts["windows"]));
    let want = facts["loss"].as_f64().expect("a number");
    let got = result["nll"].as_f64().expect("a number");
    assert!((got - want).abs() < most, "{got} for {want}");
}

/// Text of a greedy reply up to its end token, and the number of tokens to ask for.
fn reply(model: &Loaded, prompt: &Value) -> (String, usize) {
    let tokens = ids(&prompt["greedy"]);
    let end = tokens.iter().position(|&id| model.text.tokenizer.is_end_of_generation(id));
    let options = DecodeOptions { special: false };
    let text = model.text.tokenizer.decode(&tokens[..end.unwrap_or(tokens.len())], options);
    // With room for the end token it is the end that stops the reply.
    (text, end.map_or(tokens.len(), |end| end + 1))
}

/// The same replies over HTTP.
fn served(case: &Case, most: usize) {
    let Some(python) = python() else { return };
    let model = case.load(true);
    let chats = case.prompts().iter().filter(|prompt| prompt["messages"].is_array());
    let cases: Vec<Value> = chats
        .take(most)
        .map(|prompt| {
            let (text, max_tokens) = reply(&model, prompt);
            let prompt_tokens = ids(&prompt["ids"]).len();
            json!({"messages": prompt["messages"], "text": text, "max_tokens": max_tokens,
                "prompt_tokens": prompt_tokens})
        })
        .collect();
    assert!(!cases.is_empty(), "there is something to compare");
    let folder = tempfile::tempdir().expect("a folder");
    let template = folder.path().join("template.jinja");
    let mut flags = vec!["--exact", "--kv-type", "f32", "--ctx-size", "256"];
    if let Some(source) = case.template() {
        std::fs::write(&template, source).expect("writes");
        flags.extend(["--chat-template", template.to_str().expect("a plain path")]);
    }
    let server = Server::of(&[case.path()], &flags);
    let facts = json!({
        "url": format!("http://{}/v1", server.address),
        "model": case.file.file_stem().and_then(|stem| stem.to_str()),
        "cases": cases,
    });
    run_script(&python, "openai_real.py", &facts);
}

#[test]
fn smollm2_exact() {
    let Some(case) = Case::smollm2() else { return };
    exact(&case);
}

#[test]
fn smollm2_rounded() {
    let Some(case) = Case::smollm2() else { return };
    rounded(&case);
}

#[test]
fn smollm2_perplexity() {
    let Some(case) = Case::smollm2() else { return };
    loss(&case, &["--exact", "--kv-type", "f32"], LOSS.0);
    loss(&case, &[], LOSS.1);
}

#[test]
fn gemma3_exact() {
    let Some(case) = Case::gemma3() else { return };
    exact(&case);
}

#[test]
fn gemma3_rounded() {
    let Some(case) = Case::gemma3() else { return };
    rounded(&case);
}

#[test]
fn gemma3_perplexity() {
    let Some(case) = Case::gemma3() else { return };
    loss(&case, &["--exact", "--kv-type", "f32"], LOSS.0);
    loss(&case, &[], LOSS.1);
}

#[test]
fn smollm2_served() {
    let Some(case) = Case::smollm2() else { return };
    served(&case, 2);
}

#[test]
fn gemma3_served() {
    let Some(case) = Case::gemma3() else { return };
    served(&case, 1);
}
