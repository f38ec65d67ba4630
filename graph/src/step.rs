//! What changes from step to step: symbolic sizes for costs, and the rows of a real step.

/// Row count of a tensor in terms of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// One row per token of the step.
    Tokens,
    /// One row per token whose output is wanted (`rows_out`).
    Outputs,
    /// One row per sequence of the step.
    Sequences,
}

/// Sizes of a step, as the cost functions need them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepShape {
    /// Rows of this step.
    pub tokens: u64,
    /// KV length before this step, per sequence.
    pub past: u64,
    /// Rows whose output is wanted.
    pub rows_out: u64,
    /// Sequences that share the step.
    pub sequences: u64,
    /// Bytes of one stored key or value element (2 for f16).
    pub kv_element_bytes: f64,
}

impl StepShape {
    /// A prompt of `tokens` tokens of one sequence of which only the last row's logits are wanted.
    pub fn prefill(tokens: u64, past: u64) -> Self {
        Self { tokens, past, rows_out: 1, sequences: 1, kv_element_bytes: 2.0 }
    }

    /// One generated token of one sequence at a KV length of `past`.
    pub fn decode(past: u64) -> Self {
        Self::prefill(1, past)
    }

    /// Number of rows that `rows` stands for.
    pub fn rows(&self, rows: Rows) -> u64 {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::Outputs => self.rows_out,
            Rows::Sequences => self.sequences,
        }
    }
}

/// One sequence's part of a step. Its rows are next to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// First row of the sequence in this step.
    pub first_row: u32,
    /// Number of its rows in this step.
    pub rows: u32,
    /// Tokens of the sequence already in the KV cache before this step.
    pub past: u32,
    /// Range of its pages in [`StepInputs::page_table`]: first entry.
    pub first_page: u32,
    /// Number of pages, enough for `past + rows` tokens.
    pub pages: u32,
    /// Which frequencies a model with two rope tables uses for this sequence: the long ones if the
    /// sequence may outgrow the context that the model was first trained for.
    pub long_rope: bool,
}

/// The rows of one step, for all sequences scheduled in it: the only thing besides tensors that a
/// program reads, and plain data so that every device can lay it out as it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepInputs {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Sequences of the step, in the order of their rows.
    pub sequences: Vec<SequenceRows>,
    /// Page numbers of all sequences, one sequence after another.
    pub page_table: Vec<u32>,
    /// Rows whose output is wanted, ascending.
    pub rows_out: Vec<u32>,
    /// Tokens per KV page (power of two).
    pub page_tokens: u32,
}

impl StepInputs {
    /// Forgets all rows, keeping the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.page_table.clear();
        self.rows_out.clear();
    }

    /// Adds rows of one sequence: `tokens` at positions `past..`, whose KV lies in `pages`; `outputs`
    /// names the rows wanted, relative to the first of `tokens`.
    pub fn push_sequence(
        &mut self,
        tokens: &[u32],
        past: u32,
        pages: &[u32],
        long_rope: bool,
        outputs: impl IntoIterator<Item = u32>,
    ) {
        let first_row = self.tokens.len() as u32;
        let first_page = self.page_table.len() as u32;
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((0..tokens.len() as u32).map(|i| past + i));
        self.page_table.extend_from_slice(pages);
        self.rows_out.extend(outputs.into_iter().map(|row| first_row + row));
        self.sequences.push(SequenceRows {
            first_row,
            rows: tokens.len() as u32,
            past,
            first_page,
            pages: pages.len() as u32,
            long_rope,
        });
    }

    /// Number of rows that `rows` stands for in this step.
    pub fn count(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens.len(),
            Rows::Outputs => self.rows_out.len(),
            Rows::Sequences => self.sequences.len(),
        }
    }

    /// Page numbers of one sequence.
    pub fn pages(&self, sequence: &SequenceRows) -> &[u32] {
        let first = sequence.first_page as usize;
        &self.page_table[first..first + sequence.pages as usize]
    }

    /// Checks what programs rely on; `Err` says what is off.
    pub fn check(&self) -> Result<(), String> {
        let rows = self.tokens.len();
        if self.positions.len() != rows {
            return Err(format!("{rows} tokens but {} positions", self.positions.len()));
        }
        if !self.page_tokens.is_power_of_two() {
            return Err(format!("page_tokens {} is not a power of two", self.page_tokens));
        }
        let mut next = 0;
        for s in &self.sequences {
            if s.first_row != next || s.rows == 0 {
                return Err(format!("sequence rows start at {} instead of {next}", s.first_row));
            }
            next += s.rows;
            let need = (s.past + s.rows).div_ceil(self.page_tokens);
            let end = s.first_page as usize + s.pages as usize;
            if s.pages < need || end > self.page_table.len() {
                return Err(format!("sequence needs {need} pages, has {}", s.pages));
            }
        }
        if next as usize != rows {
            return Err(format!("sequences cover {next} of {rows} rows"));
        }
        let ascending = self.rows_out.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.rows_out.last().is_some_and(|&last| last as usize >= rows) {
            return Err("rows_out is not an ascending list of rows".to_owned());
        }
        Ok(())
    }
}
