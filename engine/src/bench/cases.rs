//! What is measured, and what it moves.

use std::fmt;

use serde::Serialize;
use trefoil_graph::ops::OpCost;
use trefoil_graph::{LayerGraph, StepShape};

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "work")]
pub enum Work {
    /// Reading a prompt.
    Prompt {
        /// Tokens of the prompt.
        tokens: usize,
    },
    /// Generating in so many sequences together.
    Generate {
        /// Tokens that each sequence generates, one a step.
        tokens: usize,
        /// Sequences.
        batch: usize,
    },
}

/// Work at a depth: the tokens that each sequence has in the KV cache before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    /// The work.
    #[serde(flatten)]
    pub work: Work,
    /// Tokens before it.
    pub depth: usize,
}

impl fmt::Display for Case {
    /// `pp512`, `tg128`, `tg128 b8 @ d4096`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            Work::Prompt { tokens } => write!(f, "pp{tokens}")?,
            Work::Generate { tokens, batch: 1 } => write!(f, "tg{tokens}")?,
            Work::Generate { tokens, batch } => write!(f, "tg{tokens} b{batch}")?,
        }
        match self.depth {
            0 => Ok(()),
            depth => write!(f, " @ d{depth}"),
        }
    }
}

/// What a case moves and computes, by the graph's cost functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Traffic {
    /// Bytes of weights read.
    pub weight_bytes: f64,
    /// Bytes of keys and values read and written.
    pub kv_bytes: f64,
    /// Arithmetic operations: 2 per multiply-add.
    pub flops: f64,
}

impl Traffic {
    fn add(&mut self, cost: OpCost) {
        self.weight_bytes += cost.weight_bytes;
        self.kv_bytes += cost.kv_read_bytes + cost.kv_write_bytes;
        self.flops += cost.flops();
    }

    /// Bytes of weights, keys and values.
    pub fn bytes(&self) -> f64 {
        self.weight_bytes + self.kv_bytes
    }
}

impl Case {
    /// Sequences that run together.
    pub fn batch(&self) -> usize {
        match self.work {
            Work::Prompt { .. } => 1,
            Work::Generate { batch, .. } => batch,
        }
    }

    /// Tokens of work for each sequence.
    pub fn tokens_each(&self) -> usize {
        match self.work {
            Work::Prompt { tokens } | Work::Generate { tokens, .. } => tokens,
        }
    }

    /// Tokens of work in all, whose number by the time is the rate.
    pub fn tokens(&self) -> usize {
        self.tokens_each() * self.batch()
    }

    /// Tokens of context that each sequence needs.
    pub fn context(&self) -> usize {
        self.depth + self.tokens_each()
    }

    /// What it moves where prompts are read in chunks of `chunk` tokens and a key or value element
    /// takes `kv_element_bytes`.
    pub fn traffic(&self, graph: &LayerGraph, chunk: usize, kv_element_bytes: f64) -> Traffic {
        let mut traffic = Traffic::default();
        let mut step = |tokens: usize, past: usize, rows_out: usize, sequences: usize| {
            let [tokens, past, rows_out, sequences] =
                [tokens, past, rows_out, sequences].map(|n| n as u64);
            let step = StepShape { tokens, past, rows_out, sequences, kv_element_bytes };
            traffic.add(graph.cost(&step));
        };
        match self.work {
            Work::Prompt { tokens } => {
                for first in (0..tokens).step_by(chunk.max(1)) {
                    let rows = (tokens - first).min(chunk.max(1));
                    step(rows, self.depth + first, usize::from(first + rows == tokens), 1);
                }
            }
            Work::Generate { tokens, batch } => {
                for done in 0..tokens {
                    step(batch, self.depth + done, batch, batch);
                }
            }
        }
        traffic
    }
}

/// All cases of a run of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Prompt lengths; 0 is left out.
    pub prompts: Vec<usize>,
    /// Numbers of tokens to generate; 0 is left out.
    pub generates: Vec<usize>,
    /// Depths.
    pub depths: Vec<usize>,
    /// Numbers of sequences that generate together; 0 is left out.
    pub batches: Vec<usize>,
}

impl Grid {
    /// The cases, each once, in an order in which little has to be made anew from one to the next:
    /// by batch, then by depth.
    pub fn cases(&self) -> Vec<Case> {
        let ascending = |list: &[usize]| {
            let mut list = list.to_vec();
            list.sort_unstable();
            list.dedup();
            list
        };
        let counts = |list: &[usize]| ascending(list).into_iter().filter(|&count| count > 0);
        let depths = ascending(&self.depths);
        let mut cases = Vec::new();
        let mut batches: Vec<usize> = counts(&self.batches).collect();
        if !batches.contains(&1) {
            // Prompts are read by the runner of one sequence.
            batches.insert(0, 1);
        }
        for batch in batches {
            for &depth in &depths {
                if batch == 1 {
                    let prompts = counts(&self.prompts).map(|tokens| Work::Prompt { tokens });
                    cases.extend(prompts.map(|work| Case { work, depth }));
                }
                if self.batches.contains(&batch) {
                    let all =
                        counts(&self.generates).map(|tokens| Work::Generate { tokens, batch });
                    cases.extend(all.map(|work| Case { work, depth }));
                }
            }
        }
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_named_and_ordered() {
        let grid = Grid {
            prompts: vec![512, 0, 16],
            generates: vec![128],
            depths: vec![4096, 0, 0],
            batches: vec![8, 1],
        };
        let names: Vec<String> = grid.cases().iter().map(Case::to_string).collect();
        let want = [
            "pp16",
            "pp512",
            "tg128",
            "pp16 @ d4096",
            "pp512 @ d4096",
            "tg128 @ d4096",
            "tg128 b8",
            "tg128 b8 @ d4096",
        ];
        assert_eq!(names, want);
        let grid = Grid { batches: vec![8], depths: vec![0], ..grid };
        let names: Vec<String> = grid.cases().iter().map(Case::to_string).collect();
        assert_eq!(names, ["pp16", "pp512", "tg128 b8"]);
        let nothing = Grid { prompts: vec![0], generates: vec![], ..grid };
        assert_eq!(nothing.cases(), []);
    }

    #[test]
    fn traffic_counts_weights_once_a_step() {
        let file = crate::model::open_file(crate::model::DEMO).expect("opens");
        let weights: u64 = file.tensors.values().map(|tensor| tensor.len_bytes()).sum();
        let (_, graph) = trefoil_graph::lower(&file, Default::default()).expect("lowers");
        let traffic = |work, depth| Case { work, depth }.traffic(&graph, 512, 2.0);
        let one = traffic(Work::Generate { tokens: 1, batch: 1 }, 0);
        let share = one.weight_bytes / weights as f64;
        assert!((1.0..1.01).contains(&share), "all weights and one row of the table: {share}");
        let four = traffic(Work::Generate { tokens: 1, batch: 4 }, 0);
        assert!((four.weight_bytes / one.weight_bytes - 1.0).abs() < 0.01);
        assert!((four.flops / one.flops - 4.0).abs() < 0.01 && four.kv_bytes == 4.0 * one.kv_bytes);
        let deep = traffic(Work::Generate { tokens: 1, batch: 1 }, 100);
        assert!(deep.kv_bytes > 50.0 * one.kv_bytes && deep.weight_bytes == one.weight_bytes);
        let prompt = traffic(Work::Prompt { tokens: 600 }, 0);
        assert!(prompt.weight_bytes < 2.2 * one.weight_bytes, "two chunks");
    }
}
