//! Plain data between the ops and a Vulkan device: which shader runs where, on what memory.

/// What kernels need to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Threads of a subgroup; the same in every kernel.
    pub subgroup: u32,
    /// Bytes of memory that a workgroup can share.
    pub shared_bytes: u32,
    /// Most threads of a workgroup.
    pub max_threads: u32,
    /// Rows and columns of cooperative matrices (products of halves with sums in f32, over a
    /// subgroup), where the device has them.
    pub matrices: Option<u32>,
    /// Are sums of four products of bytes one instruction?
    pub integer_dot: bool,
    /// Sizes that depend on what is fastest on a device.
    pub tuning: Tuning,
    /// Largest piece of a weight that one buffer holds, in bytes.
    pub max_part: usize,
}

/// Sizes of workgroups and tiles. Results do not depend on them beyond rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Matrix rows that a team of threads takes together in integer products.
    pub dot_rows: u32,
    /// Workgroups of integer products for which each takes rows more than once.
    pub dot_groups: u32,
    /// Most threads of a team.
    pub dot_threads: u32,
    /// Most threads of a workgroup of teams.
    pub dot_workgroup: u32,
    /// Tile of products through cooperative matrices: rows of x and outputs of a workgroup, then of
    /// each of its subgroups, and columns.
    pub coop_tile: [u32; 5],
    /// Fewest workgroups for which the tile is not made smaller.
    pub coop_groups: u32,
    /// Rows of x from which on weights are turned into halves before the products.
    pub unpack_rows: u32,
}

impl Default for Tuning {
    /// What was fastest on an NVIDIA H200 (benches/results); no other GPU was measured.
    fn default() -> Self {
        Self {
            dot_rows: 2,
            dot_groups: 132,
            dot_threads: 256,
            dot_workgroup: 512,
            coop_tile: [128, 128, 64, 32, 64],
            coop_groups: 100,
            unpack_rows: 64,
        }
    }
}

/// A shader with its specialisation constants (constant 0 is the first).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Name of the shader.
    pub shader: String,
    /// Constants, by number.
    pub constants: Vec<u32>,
}

/// A piece of memory that a dispatch touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// A tensor made outside, by its place in the segment's list.
    Input(usize),
    /// A tensor made here for others.
    Output(usize),
    /// A tensor of the program's own.
    Slot(usize),
    /// Pages of a KV layer, by its place in [`Program::kv_layers`](crate::Program::kv_layers).
    Kv(usize),
    /// A weight, by its place in [`Program::weights`](crate::Program::weights).
    Weight(usize),
    /// Small vectors, decoded: [`Program::constants`](crate::Program::constants).
    Constants,
    /// Addresses of weights, by their place in [`Program::lists`](crate::Program::lists).
    List(usize),
    /// Cosines and sines ([`Turns`](crate::Turns)) of a table, by its place in
    /// [`Program::turns`](crate::Program::turns).
    Turns(usize),
    /// Codebooks, the same for every program: [`tables`](crate::tables).
    Tables,
    /// The step's rows.
    Step(StepField),
    /// Counters of attention's workgroups: zero between launches, whoever uses them.
    Counters,
    /// Parts of attention before they are put together.
    Partials,
    /// Lists of the mixture of experts.
    Groups,
    /// Rows of x as halves.
    Halves,
    /// One of two matrices of weights as halves, which take turns.
    Unpacked(usize),
}

/// A list of the step, in 32-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepField {
    /// Token of each row.
    Tokens,
    /// Position of each row.
    Positions,
    /// Sequence of each row.
    RowSequences,
    /// Six words for each sequence: first row, rows, past, first page, pages, long rope.
    Sequences,
    /// Page numbers.
    Pages,
    /// Rows whose output is wanted.
    RowsOut,
}

/// One value of a dispatch's push constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Push {
    /// Address of memory that is read, with an offset in bytes.
    Read(Place, u64),
    /// Address of memory that is written.
    Write(Place, u64),
    /// Address of memory that is read and written.
    Update(Place, u64),
    /// An address that is not used.
    Nowhere,
    /// A number.
    Word(u32),
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// The kernel.
    pub kernel: Kernel,
    /// Push constants, addresses first.
    pub push: Vec<Push>,
    /// Workgroups.
    pub groups: [u32; 3],
}

impl Dispatch {
    /// A launch of `shader` over `groups` workgroups.
    pub(crate) fn new(shader: impl Into<String>, constants: &[u32], groups: [u32; 3]) -> Self {
        let kernel = Kernel { shader: shader.into(), constants: constants.to_vec() };
        Self { kernel, push: Vec::with_capacity(20), groups }
    }

    pub(crate) fn read(mut self, (place, offset): Spot) -> Self {
        self.push.push(Push::Read(place, offset));
        self
    }

    /// As `read`, or no address.
    pub(crate) fn read_if(mut self, spot: Option<Spot>) -> Self {
        self.push.push(spot.map_or(Push::Nowhere, |(place, offset)| Push::Read(place, offset)));
        self
    }

    pub(crate) fn write(mut self, (place, offset): Spot) -> Self {
        self.push.push(Push::Write(place, offset));
        self
    }

    /// As `write`, or no address.
    pub(crate) fn write_if(self, spot: Option<Spot>) -> Self {
        match spot {
            Some(spot) => self.write(spot),
            None => self.nowhere(),
        }
    }

    pub(crate) fn update(mut self, (place, offset): Spot) -> Self {
        self.push.push(Push::Update(place, offset));
        self
    }

    /// As `update`, or no address.
    pub(crate) fn update_if(self, spot: Option<Spot>) -> Self {
        match spot {
            Some(spot) => self.update(spot),
            None => self.nowhere(),
        }
    }

    /// An address that is not used.
    pub(crate) fn nowhere(mut self) -> Self {
        self.push.push(Push::Nowhere);
        self
    }

    pub(crate) fn words(mut self, words: impl IntoIterator<Item = u32>) -> Self {
        self.push.extend(words.into_iter().map(Push::Word));
        self
    }
}

/// A place with an offset in bytes.
pub(crate) type Spot = (Place, u64);

/// Sizes of one step: a program's dispatches depend on them and on nothing else of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Rows.
    pub tokens: u32,
    /// Rows whose output is wanted.
    pub outputs: u32,
    /// Sequences.
    pub sequences: u32,
    /// Pieces of [`SPLIT`](crate::SPLIT) positions that the longest sequence has, rounded up to a
    /// power of two.
    pub splits: u32,
    /// Tokens per KV page.
    pub page_tokens: u32,
    /// Are keys and values halves (else f32)?
    pub half: bool,
}
