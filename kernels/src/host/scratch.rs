use std::collections::HashMap;

use trefoil_graph::StepInputs;
use trefoil_graph::ops::RopeTable;

use super::Turns;

/// Memory that a queue's programs share, one run at a time: tensor slots, and the step's rope turns.
#[derive(Debug, Default)]
pub struct HostScratch {
    pub(super) slots: Vec<Vec<f32>>,
    turns: HashMap<usize, Angles>,
    turns_ready: Vec<usize>,
}

#[derive(Debug, Default)]
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl HostScratch {
    /// Makes room for `elements` in each slot. Grows only.
    pub(super) fn reserve(&mut self, elements: impl Iterator<Item = usize>) {
        for (slot, len) in elements.enumerate() {
            if self.slots.len() <= slot {
                self.slots.push(Vec::new());
            }
            if self.slots[slot].len() < len {
                self.slots[slot].resize(len, 0.0);
            }
        }
    }

    /// Forgets the last step's turns, keeping the memory.
    pub(super) fn begin_step(&mut self) {
        self.turns_ready.clear();
    }

    /// Makes the cosines and sines of `table` for the step's rows, unless this run already has them.
    pub(super) fn make_turns(&mut self, table: &RopeTable, step: &StepInputs) {
        // A program holds its tables, so that an address names one table as long as it runs.
        let key = std::ptr::from_ref(table) as usize;
        let turns = self.turns.entry(key).or_default();
        if !self.turns_ready.contains(&key) {
            turns.cos.clear();
            turns.sin.clear();
            for sequence in &step.sequences {
                for row in sequence.first_row..sequence.first_row + sequence.rows {
                    let position = step.positions[row as usize];
                    for pair in 0..table.frequencies.len() {
                        let (cos, sin) = table.turn(position, pair, sequence.long_rope);
                        turns.cos.push(cos);
                        turns.sin.push(sin);
                    }
                }
            }
            self.turns_ready.push(key);
        }
    }

    /// What [`Self::make_turns`] made for `table`.
    pub(super) fn turns(&self, table: &RopeTable) -> Turns<'_> {
        let pairs = table.frequencies.len();
        match self.turns.get(&(std::ptr::from_ref(table) as usize)) {
            Some(Angles { cos, sin }) => Turns { cos, sin, pairs },
            None => Turns { cos: &[], sin: &[], pairs },
        }
    }
}
