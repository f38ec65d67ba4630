//! Opening damaged models: without a panic, in bounded memory and time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use trefoil_graph::{ModelFile, ModelFileError};

use crate::memory::peak_of;
use crate::touch::touch;

/// Memory an opening may take: so many times its input, and a fixed part for names and paths.
pub const FACTOR: usize = 16;
/// The fixed part.
pub const FIXED: usize = 16 << 10;
/// [`FACTOR`] for input made to take as much as possible. Three bytes of JSON (`{},`) become a value
/// of 72, and a growing list holds two copies.
pub const WORST_FACTOR: usize = 96;

/// Far above what any opening takes, so that only a runaway loop exceeds it.
const LIMIT: Duration = Duration::from_secs(10);

/// What came of opening damaged models.
#[derive(Debug, Default)]
pub struct Tally {
    /// Models that opened.
    pub opened: usize,
    /// Of those opened.
    pub lowered: usize,
    /// Models that did not open.
    pub refused: usize,
    /// Most bytes that one opening took.
    pub peak: usize,
}

impl Tally {
    /// Opens one damaged model of `input` bytes and uses all that is in it.
    ///
    /// # Panics
    /// If that panics, or takes too much time or memory. Needs
    /// [`Counting`](crate::memory::Counting) as the allocator.
    pub fn one(
        &mut self,
        what: &str,
        seed: u64,
        input: usize,
        open: impl FnOnce() -> Result<ModelFile, ModelFileError>,
    ) {
        self.bounded(what, seed, FACTOR * input + FIXED, open);
    }

    /// As [`Tally::one`] with another bound of the memory in bytes.
    pub fn bounded(
        &mut self,
        what: &str,
        seed: u64,
        bound: usize,
        open: impl FnOnce() -> Result<ModelFile, ModelFileError>,
    ) {
        let start = Instant::now();
        let (result, peak) =
            peak_of(|| catch_unwind(AssertUnwindSafe(|| open().map(|model| touch(&model)))));
        let took = start.elapsed();
        assert!(peak <= bound, "{what}, seed {seed}: {peak} bytes of at most {bound}");
        assert!(took < LIMIT, "{what}, seed {seed}: {took:?}");
        self.peak = self.peak.max(peak);
        match result {
            Ok(Ok(lowered)) => {
                self.opened += 1;
                self.lowered += usize::from(lowered);
            }
            Ok(Err(error)) => {
                assert!(!error.to_string().is_empty());
                self.refused += 1;
            }
            Err(_) => panic!("{what}: panics with seed {seed}"),
        }
    }
}
