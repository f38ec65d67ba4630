//! A segment compiled for a bucket.

use std::sync::Arc;

use parking_lot::Mutex;
use trefoil_devices_api::{Binding, Bucket, Program};
use trefoil_graph::ops::RopeTable;
use trefoil_graph::{LayerGraph, NodeIndex, Rows, Segment};
use trefoil_kernels_npu::{Part, Stage};
use trefoil_telemetry::Bytes;

use crate::session::Compiled;

/// Where a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Number of the segment's input.
    Input(usize),
    /// Number of the segment's output.
    Output(usize),
    /// Number of a tensor between two stages.
    Between(usize),
}

/// A tensor of a stage.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) place: Place,
    pub(crate) width: usize,
    pub(crate) name: Arc<str>,
}

/// A stage that is ready to run.
#[derive(Debug)]
pub(crate) enum Ready {
    /// Models of one part, by rising number of rows.
    Run {
        rows: Rows,
        /// Row counts of the models.
        sizes: Vec<usize>,
        models: Vec<Arc<Compiled>>,
        inputs: Vec<Slot>,
        outputs: Vec<Slot>,
        /// Tables whose cosines and sines are further inputs.
        tables: Vec<Arc<RopeTable>>,
    },
    /// A copy of the wanted rows.
    Select { from: Slot, to: Slot },
}

/// A segment compiled for a bucket.
#[derive(Debug)]
pub(crate) struct NpuProgram {
    pub(crate) stages: Vec<Ready>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) bucket: Bucket,
    /// Tensors between stages.
    pub(crate) between: Mutex<Vec<Vec<f32>>>,
    bindings: Vec<Binding>,
    scratch: Bytes,
}

impl NpuProgram {
    /// Joins stages with the models that were compiled for their parts.
    pub(crate) fn new(
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        stages: Vec<(Stage, Vec<Arc<Compiled>>)>,
    ) -> Self {
        let mut between: Vec<NodeIndex> = Vec::new();
        let mut ready = Vec::with_capacity(stages.len());
        for (stage, models) in stages {
            let mut slot = |node: NodeIndex| {
                let own = graph.node(node);
                let place = place(segment, &mut between, node);
                Slot { place, width: own.shape.width, name: own.name.as_str().into() }
            };
            ready.push(match stage {
                Stage::Select { from, to } => Ready::Select { from: slot(from), to: slot(to) },
                Stage::Run(Part { inputs, outputs, rows, tables, .. }) => Ready::Run {
                    rows,
                    sizes: models.iter().map(|model| model.rows).collect(),
                    models,
                    inputs: inputs.into_iter().map(&mut slot).collect(),
                    outputs: outputs.into_iter().map(&mut slot).collect(),
                    tables,
                },
            });
        }
        let elements = |&node: &NodeIndex| bucket.tensor_bytes(graph, node) / size_of::<f32>();
        let between: Vec<Vec<f32>> = between.iter().map(|n| vec![0.0; elements(n)]).collect();
        let own: u64 = between.iter().map(|tensor| size_of_val(&tensor[..]) as u64).sum();
        let models = ready.iter().flat_map(|stage| match stage {
            Ready::Run { models, .. } => &models[..],
            Ready::Select { .. } => &[],
        });
        let models: u64 = models.map(|model| model.io_bytes + model.weight_bytes).sum();
        Self {
            stages: ready,
            inputs: segment.inputs.len(),
            outputs: segment.outputs.len(),
            bucket,
            between: Mutex::new(between),
            bindings: Binding::of_segment(graph, segment, bucket, &[]),
            scratch: Bytes(own + models),
        }
    }
}

fn place(segment: &Segment, between: &mut Vec<NodeIndex>, node: NodeIndex) -> Place {
    let find = |list: &[NodeIndex]| list.iter().position(|&other| other == node);
    if let Some(index) = find(&segment.inputs) {
        return Place::Input(index);
    }
    if let Some(index) = find(&segment.outputs) {
        return Place::Output(index);
    }
    Place::Between(find(between).unwrap_or_else(|| {
        between.push(node);
        between.len() - 1
    }))
}

impl Program for NpuProgram {
    fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    /// Inputs, outputs and weights of its models, which other programs may share.
    fn scratch(&self) -> Bytes {
        self.scratch
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
