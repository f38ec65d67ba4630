//! What sharing of KV pages relies on: on host devices a row comes out the same, bit for bit, in steps
//! of any size and of both phases.

use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::kv::KvType;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_engine::runner::{Outputs, Runner};
use trefoil_tests::running::{demo, lowered, model_file, random_tokens, runner};

/// Logits of the last row of a prompt that is read in these chunks.
fn last_row(runner: &mut Runner, tokens: &[u32], chunks: &[usize]) -> Vec<f32> {
    let mut sequence = runner.begin(512);
    let (mut row, mut begin) = (Vec::new(), 0);
    for &rows in chunks.iter().chain([&tokens.len()]) {
        let end = tokens.len().min(begin + rows);
        if begin == end {
            break;
        }
        runner
            .feed(&mut sequence, &tokens[begin..end], Outputs::Last, |_, values| {
                row = values.to_vec();
            })
            .expect("runs");
        begin = end;
    }
    runner.end(sequence);
    row
}

fn chunks_change_no_bit(lowered: &Lowered, backends: &Backends, options: &ModelOptions) {
    let name = lowered.hyper.name.as_deref().unwrap_or_default();
    let mut runner = runner(lowered, backends, options);
    assert!(runner.has_steady_rows(), "{name}");
    let tokens = random_tokens(lowered, 75, 5);
    let whole = last_row(&mut runner, &tokens, &[]);
    for chunks in [&[1; 75][..], &[2; 40], &[7; 20], &[16; 5], &[33, 1, 40], &[74], &[5; 20]] {
        let parts = last_row(&mut runner, &tokens, chunks);
        assert!(whole == parts, "{name} on {:?}: {chunks:?} change bits", options.device);
    }
}

#[test]
fn chunks_change_no_bit_on_host_devices() {
    for exact in [false, true] {
        let backends = Backends::detect(BackendOptions { exact, ..BackendOptions::default() });
        for (device, kv_type) in
            [("cpu0", KvType::F16), ("cpu0", KvType::F32), ("ref0", KvType::F16)]
        {
            let options = ModelOptions {
                device: Some(device.to_owned()),
                kv_type,
                ..ModelOptions::default()
            };
            // The reference is slow, and its kernels take rows one by one.
            let names = ["smollm", "qwen3moe", "gemma3", "phi3-longrope", "llama"];
            for name in if device == "cpu0" { &names[..] } else { &names[..2] } {
                chunks_change_no_bit(&lowered(&model_file(name)), &backends, &options);
            }
            if device == "cpu0" {
                chunks_change_no_bit(&demo(), &backends, &options);
            }
        }
    }
}
