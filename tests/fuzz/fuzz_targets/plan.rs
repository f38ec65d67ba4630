//! Plans in their JSON form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trefoil_scheduler::Plan;

fuzz_target!(|text: &str| {
    if let Ok(plan) = Plan::from_json(text) {
        for bucket in &plan.buckets {
            std::hint::black_box((bucket.segments(), bucket.units_per_device()));
        }
        Plan::from_json(&plan.to_json()).expect("what is written can be read");
    }
});
