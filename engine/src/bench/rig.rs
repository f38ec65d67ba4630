//! A model set up to be measured.

use std::time::Instant;

use trefoil_devices_api::Phase;
use trefoil_scheduler::{BucketPlan, Plan};

use super::cases::{Case, Traffic, Work};
use crate::backends::Backends;
use crate::model::{Lowered, ModelError, ModelOptions};
use crate::runner::{Outputs, RunError, Runner, Sequence};

/// A measurement that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The model cannot be made ready.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A step failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// No case at all.
    #[error("nothing to measure: expected a prompt length or a number of tokens above 0")]
    Nothing,
    /// A model that makes no tokens.
    #[error("{architecture}: expected a model that generates text, got one that makes embeddings")]
    Encoder {
        /// `general.architecture`.
        architecture: String,
    },
    /// A case past what the model was trained for, or past the context that was asked for.
    #[error("{case}: needs {need} tokens of context, expected at most {most}")]
    TooDeep {
        /// The case.
        case: String,
        /// Tokens that it needs.
        need: usize,
        /// Tokens that there are.
        most: usize,
    },
}

/// A compiled model with sequences that are filled up to a depth.
struct Ready {
    runner: Runner,
    batch: usize,
    sequences: Vec<Sequence>,
}

/// Runs cases of one model on one set of devices. Between cases it keeps what they share: the
/// programs of a batch size, and the tokens that sequences have in the KV cache.
pub struct Rig<'a> {
    lowered: &'a Lowered,
    backends: &'a Backends,
    options: ModelOptions,
    /// Tokens of context of each sequence.
    context: usize,
    ready: Option<Ready>,
}

impl<'a> Rig<'a> {
    /// Checks that all `cases` can run; nothing is compiled yet.
    pub fn new(
        lowered: &'a Lowered,
        backends: &'a Backends,
        mut options: ModelOptions,
        cases: &[Case],
    ) -> Result<Self, BenchError> {
        if !lowered.hyper.causal {
            return Err(BenchError::Encoder { architecture: lowered.hyper.architecture.clone() });
        }
        let trained = lowered.hyper.context;
        let most = options.context.map_or(trained, |given| given.min(trained));
        let Some(deepest) = cases.iter().max_by_key(|case| case.context()) else {
            return Err(BenchError::Nothing);
        };
        let need = deepest.context();
        if need > most {
            return Err(BenchError::TooDeep { case: deepest.to_string(), need, most });
        }
        options.context = Some(need);
        Ok(Self { lowered, backends, options, context: need, ready: None })
    }

    /// The plan for `batch` sequences.
    pub fn plan(&self, batch: usize) -> Result<Plan, BenchError> {
        Ok(self.lowered.plan(self.backends, &self.options_for(batch))?)
    }

    /// Names of the devices that work on a case of this kind.
    pub fn devices(&self, work: Work) -> Result<Vec<String>, BenchError> {
        let phase = match work {
            Work::Prompt { .. } => Phase::Prefill,
            Work::Generate { .. } => Phase::Decode,
        };
        let plan = self.plan(1)?;
        let bucket = plan.buckets.iter().find(|bucket| bucket.bucket.phase == phase);
        let names = bucket.map(BucketPlan::units_per_device).into_iter().flatten();
        Ok(names.map(|(name, _)| name.to_owned()).collect())
    }

    fn options_for(&self, batch: usize) -> ModelOptions {
        // Sequences share no page: each has its last one half empty.
        let context = self.context.next_multiple_of(self.options.page_tokens);
        ModelOptions {
            decode_batch: batch,
            kv_tokens: Some(batch * context),
            ..self.options.clone()
        }
    }

    /// What a case moves.
    pub fn traffic(&self, case: Case) -> Traffic {
        let chunk = self.options.chunk.min(self.context);
        case.traffic(&self.lowered.graph, chunk, self.options.kv_type.bytes() as f64)
    }

    /// Runs a case once and returns the seconds that its work took, without what fills the KV cache
    /// before it.
    pub fn run(&mut self, case: Case) -> Result<f64, BenchError> {
        let vocabulary = self.lowered.vocabulary();
        // Sequences differ, so that mixtures of experts spread their rows.
        let token = |sequence: usize, position: usize| {
            ((position * 7919 + sequence * 104_729 + 13) % vocabulary) as u32
        };
        let Ready { runner, sequences, .. } = self.prepare(case, token)?;
        let positions = case.depth..case.context();
        let seconds = match case.work {
            Work::Prompt { .. } => {
                let tokens: Vec<u32> = positions.map(|position| token(0, position)).collect();
                let start = Instant::now();
                runner.feed(&mut sequences[0], &tokens, Outputs::Last, |_, logits| {
                    std::hint::black_box(logits);
                })?;
                start.elapsed()
            }
            Work::Generate { batch, .. } => {
                let mut all: Vec<&mut Sequence> = sequences.iter_mut().take(batch).collect();
                let mut tokens = vec![0; batch];
                let start = Instant::now();
                for position in positions {
                    for (sequence, slot) in tokens.iter_mut().enumerate() {
                        *slot = token(sequence, position);
                    }
                    runner.decode(&mut all, &tokens, |_, logits| {
                        std::hint::black_box(logits);
                    })?;
                }
                start.elapsed()
            }
        };
        Ok(seconds.as_secs_f64())
    }

    /// Programs for the case's batch, and that many sequences of exactly its depth.
    fn prepare(
        &mut self,
        case: Case,
        token: impl Fn(usize, usize) -> u32,
    ) -> Result<&mut Ready, BenchError> {
        let batch = case.batch();
        if self.ready.as_ref().is_none_or(|ready| ready.batch != batch) {
            // Its memory goes before the next one's comes.
            self.ready = None;
            let plan = self.plan(batch)?;
            let runner = self.lowered.runner(self.backends, &plan, &self.options_for(batch))?;
            let sequences = (0..batch).map(|_| runner.begin(self.context)).collect();
            self.ready = Some(Ready { runner, batch, sequences });
        }
        let ready = self.ready.as_mut().expect("made above");
        for (index, sequence) in ready.sequences.iter_mut().enumerate() {
            // A position always has the same token, so that what is there can stay.
            ready.runner.rewind(sequence, case.depth);
            let missing = sequence.len()..case.depth;
            let missing: Vec<u32> = missing.map(|position| token(index, position)).collect();
            ready.runner.feed(sequence, &missing, Outputs::None, |_, _| ())?;
        }
        Ok(ready)
    }
}
