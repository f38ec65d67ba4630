//! Runs programs and copies on the queue's thread.

use std::sync::Arc;

use smallvec::SmallVec;
use trefoil_devices_api::{DeviceError, Work, Worker};
use trefoil_devices_host::{Floats, FloatsMut, ProgramRun, move_bytes};
use trefoil_graph::ops::RopeTable;
use trefoil_graph::{Rows, StepInputs};
use trefoil_telemetry::Nanos;

use crate::program::{NpuProgram, Place, Ready, Slot};
use crate::rows::{Piece, pieces};
use crate::session::Exchange;

/// Tables whose cosines and sines of the last step are kept.
const TABLES: usize = 4;

/// The queue's own data.
#[derive(Debug, Default)]
pub(crate) struct NpuWorker {
    turns: Vec<Turns>,
}

/// Cosines and sines of a table for the rows of a step, which all layers share.
#[derive(Debug)]
struct Turns {
    table: Arc<RopeTable>,
    /// Position of each row, and whether it uses the long frequencies.
    rows: Vec<(u32, bool)>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Worker for NpuWorker {
    fn run(&mut self, work: Work) -> Result<Option<Nanos>, DeviceError> {
        if let Some(run) = move_bytes(work)? {
            self.program(&run)?;
        }
        Ok(None)
    }
}

fn bad(what: &str, expected: impl ToString, got: impl ToString) -> DeviceError {
    let (expected, got) = (expected.to_string(), got.to_string());
    DeviceError::BadRequest { what: what.to_owned(), expected, got }
}

impl NpuWorker {
    fn program(&mut self, run: &ProgramRun) -> Result<(), DeviceError> {
        let ProgramRun { program, args, step } = run;
        let own: &NpuProgram = program
            .as_any()
            .downcast_ref()
            .ok_or_else(|| bad("program", "one of this device", "another's"))?;
        step.check().map_err(|problem| bad("step", "consistent rows", problem))?;
        for rows in [Rows::Tokens, Rows::Outputs, Rows::Sequences] {
            let (most, got) = (own.bucket.max_rows(rows), step.count(rows));
            if got > most {
                return Err(bad(&format!("{rows:?}"), format!("up to {most}"), got));
            }
        }
        if args.buffers.len() != own.inputs + own.outputs {
            return Err(bad("arguments", own.inputs + own.outputs, args.buffers.len()));
        }
        let (reads, writes) = args.buffers.split_at(own.inputs);
        let inputs = reads.iter().map(Floats::read).collect::<Result<_, _>>()?;
        let outputs = writes.iter().map(FloatsMut::write).collect::<Result<_, _>>()?;
        let mut between = own.between.lock();
        let mut tensors = Tensors { inputs, outputs, between: &mut between };
        for stage in &own.stages {
            match stage {
                Ready::Select { from, to } => tensors.select(from, to, &step.rows_out)?,
                Ready::Run { rows, sizes, models, inputs, outputs, tables } => {
                    let turns = self.turns_of(tables, step);
                    for piece in pieces(step.count(*rows), sizes) {
                        let turns = &turns;
                        let (tensors, worker) = (&mut tensors, &*self);
                        let mut exchange =
                            StepPiece { tensors, worker, turns, piece, inputs, outputs };
                        models[piece.size].run(&mut exchange)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Numbers of the kept turns of these tables, made for the rows of `step`.
    fn turns_of(&mut self, tables: &[Arc<RopeTable>], step: &StepInputs) -> SmallVec<[usize; 2]> {
        if self.turns.len() + tables.len() > TABLES {
            self.turns.retain(|turns| tables.iter().any(|table| Arc::ptr_eq(table, &turns.table)));
        }
        let numbers = tables.iter().map(|table| {
            let known = self.turns.iter().position(|turns| Arc::ptr_eq(&turns.table, table));
            let number = known.unwrap_or_else(|| {
                let (cos, sin) = (Vec::new(), Vec::new());
                self.turns.push(Turns { table: table.clone(), rows: Vec::new(), cos, sin });
                self.turns.len() - 1
            });
            self.turns[number].make(step);
            number
        });
        numbers.collect()
    }
}

impl Turns {
    /// Makes them anew if the rows are others than the last time.
    fn make(&mut self, step: &StepInputs) {
        let rows = || {
            step.sequences.iter().flat_map(|sequence| {
                let rows = sequence.first_row..sequence.first_row + sequence.rows;
                rows.map(|row| (step.positions[row as usize], sequence.long_rope))
            })
        };
        if rows().eq(self.rows.iter().copied()) {
            return;
        }
        self.rows.clear();
        self.rows.extend(rows());
        self.cos.clear();
        self.sin.clear();
        for &(position, long) in &self.rows {
            for pair in 0..self.table.frequencies.len() {
                let (cos, sin) = self.table.turn(position, pair, long);
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }
}

/// All tensors of a program in a step.
struct Tensors<'a> {
    inputs: SmallVec<[Floats<'a>; 8]>,
    outputs: SmallVec<[FloatsMut<'a>; 8]>,
    between: &'a mut Vec<Vec<f32>>,
}

impl Tensors<'_> {
    /// `count` rows from `first` on.
    fn read(&self, slot: &Slot, first: usize, count: usize) -> Result<&[f32], DeviceError> {
        let all: &[f32] = match slot.place {
            Place::Input(index) => &self.inputs[index],
            Place::Output(index) => &self.outputs[index],
            Place::Between(index) => &self.between[index],
        };
        let range = first * slot.width..(first + count) * slot.width;
        let (end, len) = (range.end, all.len());
        all.get(range).ok_or_else(|| bad(&slot.name, format!("{end} elements"), len))
    }

    fn write(&mut self, slot: &Slot, first: usize, from: &[f32]) -> Result<(), DeviceError> {
        let all: &mut [f32] = match slot.place {
            Place::Input(_) => return Err(bad(&slot.name, "a tensor to write", "an input")),
            Place::Output(index) => &mut self.outputs[index],
            Place::Between(index) => &mut self.between[index],
        };
        let range = first * slot.width..first * slot.width + from.len();
        let (end, len) = (range.end, all.len());
        let to = all.get_mut(range);
        to.ok_or_else(|| bad(&slot.name, format!("{end} elements"), len))?.copy_from_slice(from);
        Ok(())
    }

    /// Copies the wanted rows.
    fn select(&mut self, from: &Slot, to: &Slot, wanted: &[u32]) -> Result<(), DeviceError> {
        let mut row: Vec<f32> = vec![0.0; from.width];
        for (index, &wanted) in wanted.iter().enumerate() {
            row.copy_from_slice(self.read(from, wanted as usize, 1)?);
            self.write(to, index, &row)?;
        }
        Ok(())
    }
}

/// Some rows of a step on their way through a model.
struct StepPiece<'a, 'b> {
    tensors: &'a mut Tensors<'b>,
    worker: &'a NpuWorker,
    turns: &'a [usize],
    piece: Piece,
    inputs: &'a [Slot],
    outputs: &'a [Slot],
}

impl StepPiece<'_, '_> {
    /// An input's values for the rows of the piece.
    fn values(&self, input: usize) -> Result<&[f32], DeviceError> {
        let Piece { first, count, .. } = self.piece;
        if let Some(slot) = self.inputs.get(input) {
            return self.tensors.read(slot, first, count);
        }
        let number = input - self.inputs.len();
        let turns = &self.worker.turns[self.turns[number / 2]];
        let pairs = turns.table.frequencies.len();
        let all = if number.is_multiple_of(2) { &turns.cos } else { &turns.sin };
        Ok(&all[first * pairs..(first + count) * pairs])
    }
}

impl Exchange for StepPiece<'_, '_> {
    fn fill(&self, input: usize, to: &mut [f32]) -> Result<(), DeviceError> {
        let values = self.values(input)?;
        let (rows, padding) = to.split_at_mut(values.len());
        rows.copy_from_slice(values);
        padding.fill(0.0);
        Ok(())
    }

    fn take(&mut self, output: usize, from: &[f32]) -> Result<(), DeviceError> {
        let slot = &self.outputs[output];
        let values = &from[..self.piece.count * slot.width];
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            return Err(DeviceError::NotFinite {
                label: "npu".to_owned(),
                tensor: slot.name.to_string(),
                row: self.piece.first + place / slot.width,
                value: values[place],
            });
        }
        self.tensors.write(slot, self.piece.first, values)
    }
}
