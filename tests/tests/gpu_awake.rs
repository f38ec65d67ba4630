//! A GPU that is kept awake between its pieces of work gives the same tokens, and rests again after them.

use std::time::{Duration, Instant};

use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::model::ModelOptions;
use trefoil_tests::devices::{GPU, gpu_options, with_gpu};
use trefoil_tests::running::{exact_options, greedy, lowered, model_file, random_tokens, runner};

const TOKENS: usize = 24;

#[test]
fn a_gpu_that_is_kept_awake_gives_the_same_tokens() {
    if with_gpu(true).is_none() {
        return;
    }
    let awake = BackendOptions { keep_awake: Some(true), ..gpu_options(true) };
    let lowered = lowered(&model_file("smollm"));
    let prompt = random_tokens(&lowered, 20, 5);
    let of = |backends: &Backends, pins: &[&str], awake: bool| {
        let pins = pins.iter().map(|pin| pin.parse().expect("a pin")).collect();
        let mut runner =
            runner(&lowered, backends, &ModelOptions { pins, ..exact_options("cpu0") });
        runner.executor.keep_awake(awake);
        greedy(&mut runner, &prompt, TOKENS)
    };
    for own_memory in [false, true] {
        let backends = Backends::detect(BackendOptions { own_memory, ..awake.clone() });
        let want = of(&backends, &[], true);
        // Back and forth in each layer, once in each step, and with the GPU told to rest.
        for (pins, awake) in
            [(&["blk.*.ffn=gpu0"][..], true), (&["head=gpu0"], true), (&["head=gpu0"], false)]
        {
            assert_eq!(of(&backends, pins, awake), want, "{pins:?}");
        }
        let gpu =
            backends.devices.iter().find(|device| device.info().name == GPU).expect("is here");
        gpu.keep_awake(Duration::from_secs(3600));
        // Work comes first, and closing a device does not wait until it may rest.
        assert_eq!(of(&backends, &["blk.0.*=gpu0"], true), want);
        let start = Instant::now();
        drop(backends);
        assert!(start.elapsed() < Duration::from_secs(30), "the device closes while it is awake");
    }
}
