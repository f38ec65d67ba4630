//! A model that is compiled and ready to run.

use ort::memory::Allocator;
use ort::session::{IoBinding, Session};
use ort::value::{Tensor, ValueType};
use parking_lot::Mutex;
use trefoil_devices_api::{DeviceError, Reservation};
use trefoil_kernels_npu::{Model, TensorIo};

/// A session with its own input and output memory, for one number of rows.
pub(crate) struct Compiled {
    state: Mutex<State>,
    inputs: Vec<TensorIo>,
    pub(crate) rows: usize,
    /// Bytes of its inputs and outputs.
    pub(crate) io_bytes: u64,
    /// Bytes of its weights, which it has a copy of.
    pub(crate) weight_bytes: u64,
    _memory: Reservation,
}

struct State {
    // Dropped in this order: the binding refers to the tensors and the session.
    binding: IoBinding,
    inputs: Vec<Tensor<f32>>,
    outputs: Vec<Tensor<f32>>,
    session: Session,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Compiled({} rows, {} inputs)", self.rows, self.inputs.len())
    }
}

/// Where a run's values come from and go to.
pub(crate) trait Exchange {
    /// Writes an input, all rows of it.
    fn fill(&self, input: usize, to: &mut [f32]) -> Result<(), DeviceError>;
    /// Takes an output.
    fn take(&mut self, output: usize, from: &[f32]) -> Result<(), DeviceError>;
}

/// An error of ONNX Runtime at run time.
pub(crate) fn driver(call: &'static str, error: &ort::Error) -> DeviceError {
    DeviceError::Driver { call, code: error.code() as i64, text: error.message().to_owned() }
}

/// Is it a session of this model? Else an error that says how it differs.
pub(crate) fn check(session: &Session, model: &Model) -> Result<(), String> {
    let rows = model.rows;
    let shown = |io: &[ort::value::Outlet]| -> Vec<(String, Option<Vec<i64>>)> {
        let shape = |kind: &ValueType| kind.tensor_shape().map(|shape| shape.to_vec());
        io.iter().map(|io| (io.name().to_owned(), shape(io.dtype()))).collect()
    };
    let wanted = |io: &[TensorIo]| -> Vec<(String, Option<Vec<i64>>)> {
        let shape = |io: &TensorIo| vec![rows as i64, io.width as i64];
        io.iter().map(|io| (io.name.clone(), Some(shape(io)))).collect()
    };
    for (mut want, mut got) in [
        (wanted(&model.inputs), shown(session.inputs())),
        (wanted(&model.outputs), shown(session.outputs())),
    ] {
        // They are bound by name: a provider may write them down in another order.
        want.sort();
        got.sort();
        if want != got {
            return Err(format!("expected tensors {want:?}, got {got:?}"));
        }
    }
    Ok(())
}

impl Compiled {
    /// Makes inputs and outputs of a session of this model. An error says how the session is another
    /// model's.
    pub(crate) fn new(
        session: Session,
        model: &Model,
        weight_bytes: u64,
        memory: Reservation,
    ) -> Result<Self, String> {
        let rows = model.rows;
        check(&session, model)?;
        let state = State::new(session, model).map_err(|error| error.message().to_owned())?;
        let widths = model.inputs.iter().chain(&model.outputs).map(|io| io.width);
        Ok(Self {
            state: Mutex::new(state),
            inputs: model.inputs.clone(),
            rows,
            io_bytes: widths.map(|width| (width * rows * size_of::<f32>()) as u64).sum(),
            weight_bytes,
            _memory: memory,
        })
    }

    /// Runs once. Returns when the outputs were taken.
    pub(crate) fn run(&self, exchange: &mut dyn Exchange) -> Result<(), DeviceError> {
        let state = &mut *self.state.lock();
        for (index, (tensor, io)) in state.inputs.iter_mut().zip(&self.inputs).enumerate() {
            exchange.fill(index, tensor.extract_tensor_mut().1)?;
            // Anew for every run: a provider with memory of its own copies when it is bound.
            let bound = state.binding.bind_input(io.name.as_str(), tensor);
            bound.map_err(|error| driver("BindInput", &error))?;
        }
        let made = state.session.run_binding(&state.binding);
        drop(made.map_err(|error| driver("RunWithBinding", &error))?);
        for (index, tensor) in state.outputs.iter().enumerate() {
            exchange.take(index, tensor.extract_tensor().1)?;
        }
        Ok(())
    }
}

impl State {
    fn new(session: Session, model: &Model) -> Result<Self, ort::Error> {
        let mut binding = session.create_binding()?;
        let host = Allocator::default();
        let tensor = |io: &TensorIo| Tensor::<f32>::new(&host, [model.rows, io.width]);
        let inputs = model.inputs.iter().map(tensor).collect::<Result<Vec<_>, _>>()?;
        let mut outputs = model.outputs.iter().map(tensor).collect::<Result<Vec<_>, _>>()?;
        for (output, io) in outputs.iter_mut().zip(&model.outputs) {
            binding.bind_output(io.name.as_str(), output)?;
        }
        Ok(Self { binding, inputs, outputs, session })
    }
}
