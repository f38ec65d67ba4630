//! Reports against arithmetic on the files' tensors and keys.

use std::path::{Path, PathBuf};

use super::*;
use crate::test_data::{carried, demo};
use crate::{LowerOptions, lower};

const DECODERS: &[&str] = &["smollm", "gemma3", "phi3-longrope", "qwen3moe"];

fn decoders() -> Vec<PathBuf> {
    let carried = DECODERS.iter().map(|name| carried(&format!("models/{name}/model-f32.gguf")));
    carried.chain([demo()]).collect()
}

fn options(context: usize) -> InspectOptions {
    InspectOptions { context, kv_element_bytes: 2.0, budget: None }
}

fn inspect(path: &Path, options: InspectOptions) -> (ModelFile, Report, LayerGraph) {
    let file = ModelFile::open(path).expect("opens");
    let (hyper, graph) = lower(&file, LowerOptions::default()).expect("lowers");
    let report = Report::new(&file, &hyper, &graph, options);
    (file, report, graph)
}

/// A key of the model's own, as a number.
fn key(file: &ModelFile, name: &str) -> f64 {
    let architecture = file.metadata.str("general.architecture").unwrap().unwrap();
    file.metadata.u64(&format!("{architecture}.{name}")).unwrap().unwrap_or(0) as f64
}

/// Part of a tensor that one token needs: of the experts, those that it chooses.
fn share(file: &ModelFile, name: &str) -> f64 {
    let experts = name.contains("_exps");
    if experts { key(file, "expert_used_count") / key(file, "expert_count") } else { 1.0 }
}

fn close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() <= 1e-9 * want.abs(), "{what}: {got} for {want}");
}

#[test]
fn tensors_are_counted_and_weighed() {
    for path in decoders() {
        let (file, report, _) = inspect(&path, options(100));
        let shapes = file.tensors.values().map(|tensor| tensor.shape.iter().product::<u64>());
        assert_eq!(report.parameters, shapes.sum::<u64>());
        assert_eq!(report.types.iter().map(|row| row.tensors).sum::<usize>(), file.tensors.len());
        // All that is in the file and not in its header: the data, but for padding.
        let size = std::fs::metadata(&path).unwrap().len();
        let header = file.tensors.values().map(|tensor| tensor.offset).min().unwrap();
        let data = size - header;
        let padding = 32 * file.tensors.len() as u64;
        let weights = report.memory.weights.0;
        assert!(weights <= data && data < weights + padding, "{weights} bytes of {data}");
        close(report.bits_per_weight * report.parameters as f64, 8.0 * weights as f64, "bits");
    }
}

#[test]
fn decode_reads_every_weight_but_the_table_and_the_other_experts() {
    for path in decoders() {
        let (file, report, _) = inspect(&path, options(100));
        let table = &file.tensors["token_embd.weight"];
        let row = table.len_bytes() / table.shape[0];
        let tied = !file.tensors.contains_key("output.weight");
        let mut want = row as f64;
        for tensor in file.tensors.values().filter(|tensor| !tensor.name.starts_with("rope_")) {
            if tied || tensor.name != table.name {
                want += tensor.len_bytes() as f64 * share(&file, &tensor.name);
            }
        }
        for step in report.steps.iter().filter(|step| step.kind == StepKind::Decode) {
            close(step.cost.weight_bytes, want, &report.label);
        }
    }
}

#[test]
fn prefill_multiplies_every_matrix_with_every_token() {
    for path in decoders() {
        let (file, report, _) = inspect(&path, options(100));
        let mut per_token = 0.0;
        for tensor in file.tensors.values().filter(|tensor| tensor.name.starts_with("blk.")) {
            if tensor.shape.len() > 1 {
                let elements = tensor.shape.iter().product::<u64>() as f64;
                per_token += 2.0 * elements * share(&file, &tensor.name);
            }
        }
        let table = &file.tensors["token_embd.weight"].shape;
        let head = 2.0 * (table[0] * table[1]) as f64;
        let step = report.steps[0];
        let tokens = 512.0f64.min(key(&file, "context_length"));
        assert_eq!(step.tokens as f64, tokens);
        close(step.cost.weight_flops, tokens * per_token + head, &report.label);
        assert!(step.flops_per_token > per_token + head / tokens);
    }
}

#[test]
fn kv_cache_is_two_rows_per_layer_and_token() {
    for path in decoders() {
        for (context, element) in [(100, 2.0), (64, 1.0625)] {
            let options = InspectOptions { kv_element_bytes: element, ..options(context) };
            let (file, report, graph) = inspect(&path, options);
            let head_dim = match key(&file, "attention.key_length") {
                0.0 => key(&file, "embedding_length") / key(&file, "attention.head_count"),
                length => length,
            };
            let row = key(&file, "attention.head_count_kv") * head_dim * element;
            let per_token = 2.0 * row * key(&file, "block_count");
            close(report.memory.kv_per_token, per_token, "per token");
            assert_eq!(report.memory.kv.0, (per_token * context as f64).ceil() as u64);
            let total = report.memory.weights.0 + report.memory.kv.0;
            assert_eq!(report.memory.total.0, total);
            // The token at the end of the context reads what its windows leave, and writes its own.
            let last = report.steps.last().unwrap();
            assert_eq!(last.past, context as u64);
            let seen = |window: Option<u32>| match window {
                Some(window) => (context + 1).min(window as usize + 1) as f64,
                None => (context + 1) as f64,
            };
            let want: f64 = graph.kv().iter().map(|kv| 2.0 * row * seen(kv.window)).sum();
            close(last.cost.kv_read_bytes, want, "read");
            close(last.cost.kv_write_bytes, per_token, "written");
        }
    }
}

#[test]
fn largest_context_fits_and_one_more_token_does_not() {
    let (_, report, _) = inspect(&demo(), options(100));
    let trained = report.hyper.context as u64;
    let memory = report.memory;
    let per_token = memory.kv_per_token as u64;
    for tokens in [1, 2, 77, trained - 1] {
        let budget = memory.weights.0 + tokens * per_token;
        for (spare, want) in [(0, tokens), (per_token - 1, tokens), (per_token, tokens + 1)] {
            let fit = memory.fit(Bytes(budget + spare), trained);
            assert_eq!((fit.fits, fit.context), (true, want), "{tokens} and {spare}");
            assert_eq!(fit.whole_context, want == trained);
        }
    }
    for budget in [0, memory.weights.0 - 1, memory.weights.0, memory.weights.0 + per_token - 1] {
        let fit = memory.fit(Bytes(budget), trained);
        assert_eq!((fit.fits, fit.context, fit.whole_context), (false, 0, false), "{budget}");
    }
    assert_eq!(memory.fit(Bytes(u64::MAX), trained).context, trained);
    let with_budget = InspectOptions { budget: Some(Bytes(1 << 20)), ..options(100) };
    let (_, report, _) = inspect(&demo(), with_budget);
    let budgets: Vec<u64> = report.fits.iter().map(|fit| fit.budget.0 >> 20).collect();
    assert_eq!(budgets, [1, 8 << 10, 16 << 10, 24 << 10, 32 << 10, 64 << 10, 96 << 10]);
}

#[test]
fn enormous_contexts_saturate() {
    let (_, report, _) = inspect(&demo(), options(usize::MAX));
    assert_eq!(report.memory.total, Bytes(u64::MAX));
    assert!(!report.to_text().is_empty());
}

#[test]
fn layers_that_are_alike_stand_together() {
    let (_, report, _) = inspect(&carried("models/gemma3/model-f32.gguf"), options(100));
    let layers: Vec<_> = report.parts.iter().map(|part| part.layers.clone()).collect();
    assert_eq!(layers, [vec![], vec![0, 1, 2, 3, 4], vec![5], vec![]]);
    let window = |part: &Part| part.units.iter().find_map(|unit| unit.window);
    let windows: Vec<_> = report.parts.iter().map(window).collect();
    assert_eq!(windows, [None, Some(16), None, None]);
    for path in decoders() {
        let (_, report, graph) = inspect(&path, options(100));
        let times = |part: &Part| part.layers.len().max(1);
        let units: usize = report.parts.iter().map(|part| times(part) * part.units.len()).sum();
        assert_eq!((units, report.units), (graph.units().len(), graph.units().len()));
        let ops = |part: &Part| part.units.iter().map(|unit| unit.ops.len()).sum::<usize>();
        let ops: usize = report.parts.iter().map(|part| times(part) * ops(part)).sum();
        assert_eq!((ops, report.ops), (graph.nodes().count(), graph.nodes().count()));
    }
}

#[test]
fn experts_are_counted_not_listed() {
    let (_, report, _) = inspect(&carried("models/qwen3moe/model-f32.gguf"), options(100));
    let units = report.parts.iter().flat_map(|part| &part.units);
    let experts = units.flat_map(|unit| &unit.ops).find(|op| op.kind == "experts").unwrap();
    // Gates and ups are of one shape and stand next to each other.
    let counts: Vec<_> = experts.weights.iter().map(|weight| weight.count).collect();
    assert_eq!(counts, [12, 6]);
}

#[test]
fn encoders_have_one_step() {
    let (file, report, _) = inspect(&carried("models/bert/model-f32.gguf"), options(100));
    let [step] = report.steps[..] else { panic!("{:?}", report.steps) };
    assert_eq!((step.kind, step.tokens as f64), (StepKind::Prefill, 128.0));
    assert!(key(&file, "context_length") as u64 == step.tokens && !report.hyper.causal);
}

#[test]
fn text_is_one_screen_of_columns() {
    for path in decoders().into_iter().chain([carried("models/bert/model-f32.gguf")]) {
        let (_, report, _) = inspect(&path, options(2048));
        let text = report.to_text();
        println!("{text}");
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert!(lines.len() <= 45, "{} lines", lines.len());
        for line in &lines {
            assert!(line.chars().count() <= 130 && line.trim_end() == *line, "{line}");
        }
        // Right-aligned: each number ends where its heading does.
        let at = lines.iter().position(|line| line.starts_with("type ")).unwrap();
        for row in &report.types {
            let end = lines[at].find("elements").unwrap() + "elements".len();
            let line = lines[at + 1..].iter().find(|line| line.starts_with(row.block.name()));
            assert!(line.unwrap().as_bytes()[end - 1] != b' ', "{line:?}");
            assert_eq!(line.unwrap().as_bytes()[end], b' ', "{line:?}");
        }
    }
}

#[test]
fn json_has_the_same_numbers() {
    let (_, report, _) = inspect(&demo(), options(2048));
    let json: serde_json::Value =
        serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(json["parameters"], report.parameters);
    assert_eq!(json["memory"]["kv"], report.memory.kv.0);
    assert_eq!(json["types"][0]["block"], report.types[0].block.name());
    assert_eq!(json["steps"][1]["kind"], "decode");
    assert_eq!(json["fits"].as_array().unwrap().len(), COMMON_BUDGETS_GIB.len());
    assert_eq!(json["parts"][0]["units"][0]["ops"][0]["name"], "token_embd");
}

#[test]
fn dot_has_a_cluster_per_unit_and_every_edge() {
    for path in decoders() {
        let (_, _, graph) = inspect(&path, options(100));
        let text = dot(&graph);
        assert_eq!(text.matches("subgraph cluster_").count(), graph.units().len());
        let edges: usize = graph.nodes().map(|node| graph.inputs(node).len()).sum();
        assert_eq!(text.matches(" -> ").count(), edges);
        // Labels hold no braces, so these are the language's own.
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        for node in graph.nodes() {
            let name = &graph.node(node).name;
            assert!(text.contains(&format!("n{} [label=\"{name}\\n", node.index())), "{name}");
        }
        assert!(text.lines().all(|line| line.matches('"').count() % 2 == 0));
    }
}
