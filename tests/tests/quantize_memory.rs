//! Quantising takes the same memory whatever the model's size. Alone in its process, for the count
//! is of all threads.

use trefoil_engine::model::{DEMO, open_file};
use trefoil_engine::quantize::{QuantizeOptions, Target, quantize_file};
use trefoil_tests::memory::{Counting, peak_of};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn memory_is_bounded_by_the_largest_piece() {
    let file = open_file(DEMO).expect("opens");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("f16.gguf");
    let options = QuantizeOptions { to: Target::F16, threads: 2, force: false };
    let (summary, peak) = peak_of(|| quantize_file(&file, &target, options, &mut |_| ()));
    let written = summary.expect("quantises").target.0 as usize;
    println!("{peak} bytes for a file of {written}");
    // 8 Mi elements of two bytes, a file buffer, metadata and what threads need.
    assert!(peak < 24 << 20, "{peak} bytes");
    assert!(written > 44 << 20, "{written} bytes would fit in memory");
}
