//! What an executor is asked to do, step by step.

use trefoil_devices_api::Phase;
use trefoil_graph::StepInputs;

/// A step to be filled in: empty lists.
#[derive(Debug)]
pub struct StepOrder<'a> {
    /// Its rows; the number of tokens per page is set.
    pub rows: &'a mut StepInputs,
    /// Pages that are where the other phase has them, and must come before the step.
    pub fetch: &'a mut Vec<u32>,
    /// Pages that the other phase is going to want: they go there after the step, while other things
    /// happen.
    pub send: &'a mut Vec<u32>,
    /// How many of the largest elements of each row of the result are looked at; 0: all. The others may
    /// be told as negative infinity then: so they need not leave the device that made them.
    pub largest: &'a mut usize,
}

/// Steps to run one after the other. Where the plan has several steps at once under way, later ones
/// are asked for before the results of earlier ones are told.
pub trait Steps {
    /// Fills in the next step and says its phase; `None` if there is none.
    fn next(&mut self, order: StepOrder<'_>) -> Option<Phase>;

    /// Takes the result, `[rows, width]`, of the oldest step whose result was not told yet.
    fn done(&mut self, values: &[f32]);
}

/// One step, with what fills and reads it.
pub(super) struct Single<F, R, T> {
    pub(super) phase: Phase,
    pub(super) fill: Option<F>,
    pub(super) read: Option<R>,
    pub(super) result: Option<T>,
}

impl<F, R, T> Steps for Single<F, R, T>
where
    F: FnOnce(&mut StepInputs),
    R: FnOnce(&[f32]) -> T,
{
    fn next(&mut self, order: StepOrder<'_>) -> Option<Phase> {
        self.fill.take()?(order.rows);
        Some(self.phase)
    }

    fn done(&mut self, values: &[f32]) {
        self.result = self.read.take().map(|read| read(values));
    }
}
