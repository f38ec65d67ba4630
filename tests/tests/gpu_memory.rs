//! Memory of the Vulkan device: weights that are not copied, nothing left behind by rounds of
//! loading and opening.

use trefoil_devices_api::DomainId;
use trefoil_engine::backends::Backends;
use trefoil_engine::model::ModelOptions;
use trefoil_engine::quantize::Mixture;
use trefoil_engine::runner::Outputs;
use trefoil_engine::synthetic::Shape;
use trefoil_telemetry::Bytes;
use trefoil_tests::devices::{GPU, gpu_options, has_gpu};
use trefoil_tests::made::{TINY, made};
use trefoil_tests::memory::{Resident, resident};
use trefoil_tests::running::{exact_options, lowered, model_file, runner};

const MIB: u64 = 1 << 20;

/// About 300 MB in Q8_0.
const LARGE: Shape = Shape {
    name: "large",
    layers: 20,
    embedding: 1024,
    heads: 16,
    kv_heads: 8,
    ffn: 3072,
    vocabulary: 32_000,
    context: 2048,
    ..TINY
};

/// Bytes that the GPU's domain holds, by holder.
fn held(backends: &Backends) -> Vec<(String, Bytes)> {
    backends.memory.holders(DomainId::HOST)
}

#[test]
fn memory_is_taken_once_and_given_back() {
    // One test: resident memory is that of the whole process.
    if resident().is_none() {
        println!("skipped: the system does not tell resident memory");
        return;
    }
    weights_are_the_files_pages();
    rounds_of_loading_leave_nothing();
    rounds_of_opening_leave_nothing();
}

/// Resident memory now.
fn now() -> Resident {
    resident().expect("it was told before")
}

fn shares_memory(backends: &Backends) -> bool {
    let gpu = backends.devices.iter().find(|device| device.info().name == GPU);
    gpu.expect("is here").domains()[0].id == DomainId::HOST
}

fn weights_are_the_files_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    let lowered = made(folder.path(), LARGE, Mixture::Q8_0);
    let path = folder.path().join("qwen3-Q8_0.gguf");
    let file = std::fs::metadata(path).expect("written").len();
    assert!(file > 250 * MIB, "{file}");
    let before = now();
    let backends = Backends::detect(gpu_options(false));
    if !has_gpu(&backends) || !shares_memory(&backends) {
        return;
    }
    let options = ModelOptions { device: Some(GPU.to_owned()), ..ModelOptions::default() };
    let plan = lowered.plan(&backends, &options).expect("places");
    let kv = plan.memory.iter().map(|domain| domain.kv.0).max().expect("a domain");
    let mut runner = lowered.runner(&backends, &plan, &options).expect("compiles");
    let mut sequence = runner.begin(64);
    for tokens in [&[1, 2, 3, 4][..], &[5]] {
        runner.feed(&mut sequence, tokens, Outputs::Last, |_, _| ()).expect("runs");
    }
    let after = now();
    println!("file {}, KV {}, before {before:?}, after {after:?}", Bytes(file), Bytes(kv));
    assert!(held(&backends).iter().all(|(holder, _)| holder != "weights"), "{:?}", held(&backends));
    let all = after.file.0 + after.own.0;
    assert!(all <= file + kv + 400 * MIB, "{} in all", Bytes(all));
    // A copy would be the program's own pages.
    let own = after.own.0.saturating_sub(before.own.0);
    assert!(own < kv + file / 2, "{} of its own", Bytes(own));
}

fn rounds_of_loading_leave_nothing() {
    let backends = Backends::detect(gpu_options(true));
    if !has_gpu(&backends) {
        return;
    }
    let path = model_file("smollm");
    let round = || {
        let lowered = lowered(&path);
        let mut runner = runner(&lowered, &backends, &exact_options(GPU));
        let mut sequence = runner.begin(64);
        for tokens in [&[1, 2, 3, 4, 5][..], &[6]] {
            runner.feed(&mut sequence, tokens, Outputs::Last, |_, _| ()).expect("runs");
        }
        assert!(backends.memory.used(DomainId::HOST).0 > 0);
    };
    (0..30).for_each(|_| round());
    let (warm, kept) = (now(), held(&backends));
    println!("after 30 rounds {warm:?}, held {kept:?}");
    (0..170).for_each(|_| round());
    let end = now();
    println!("after 200 rounds {end:?}");
    assert_eq!(held(&backends), kept, "what the device keeps for itself does not grow");
    assert!(kept.iter().all(|(holder, _)| holder == "scratch"), "{kept:?}");
    let grown = end.own.0.saturating_sub(warm.own.0);
    assert!(grown < 8 * MIB, "170 rounds took {}", Bytes(grown));
    let memory = backends.memory.clone();
    drop(backends);
    assert_eq!(memory.used(DomainId::HOST), Bytes(0), "{:?}", memory.holders(DomainId::HOST));
}

fn rounds_of_opening_leave_nothing() {
    let round = || has_gpu(&Backends::detect(gpu_options(true)));
    for _ in 0..4 {
        if !round() {
            return;
        }
    }
    let warm = now();
    for _ in 0..20 {
        round();
    }
    let end = now();
    println!("after 4 devices {warm:?}, after 24 {end:?}");
    let grown = end.own.0.saturating_sub(warm.own.0);
    assert!(grown < 32 * MIB, "20 devices took {}", Bytes(grown));
}
