//! The provider of one session: what it takes, compiles, and runs.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ort_sys::{OrtGraph, OrtKernelContext, OrtNode, OrtOpAttr, OrtOpAttrType, OrtStatusPtr};

use crate::faults::{Faults, Place};
use crate::ffi::{Api, FusionOptions, Opaque, OrtEp, OrtNodeComputeInfo, VERSION, call, guarded};
use crate::graph::{Node, Value, node, nodes, tensor};
use crate::program::{Attributes, OPS, Program, Step, Tensor};

/// The provider's name, and the prefix of its options.
pub(crate) const NAME: &str = "trefoiltest";
pub(crate) const NAME_TEXT: &CStr = c"trefoiltest";
const CONTEXT: &str = "EPContext";

/// A provider with what it needs; ONNX Runtime sees its first part.
#[repr(C)]
pub(crate) struct Provider {
    interface: OrtEp,
    api: Api,
    faults: Faults,
    writes_context: bool,
    /// Runs of all compiled nodes.
    runs: Arc<AtomicU64>,
}

impl Provider {
    pub(crate) fn new(api: Api, faults: Faults, writes_context: bool) -> Self {
        let interface = OrtEp {
            version: VERSION,
            get_name,
            get_capability,
            compile,
            release_infos,
            get_layout: None,
            should_convert_layout: None,
            set_dynamic_options: None,
            on_run_start: None,
            on_run_end: None,
            create_allocator: None,
            create_sync_stream: None,
            get_compatibility: None,
        };
        Self { interface, api, faults, writes_context, runs: Arc::default() }
    }

    /// Why a node is not taken; nothing if it is.
    fn refusal(&self, node: &Node) -> Result<Option<String>, String> {
        let known = OPS.contains(&node.op.as_str());
        if !known || !matches!(node.domain.as_str(), "" | "ai.onnx" | "com.microsoft") {
            return Ok(Some("not one of its ops".to_owned()));
        }
        if self.faults.refuses(&node.op) {
            return Ok(Some("refused as asked".to_owned()));
        }
        let inputs = node.read_values();
        for value in inputs.iter().chain(&node.outputs).flatten() {
            let right = value.is_float || (value.is_constant && value.is_byte);
            if value.shape.is_none() || !right {
                return Ok(Some(format!("{}: not a static shape of F32", value.name)));
            }
        }
        let constant = |index: usize| match node.inputs.get(index) {
            Some(Some(value)) => value.is_constant,
            _ => true,
        };
        let plain = match node.op.as_str() {
            "MatMul" => {
                let matrix = |value: &Value| value.shape.as_ref().is_some_and(|s| s.len() == 2);
                constant(1) && node.inputs.get(1).is_some_and(|v| v.as_ref().is_some_and(matrix))
            }
            "MatMulNBits" => {
                let grouped = node.inputs.get(4).is_some_and(Option::is_some);
                (1..6).all(constant) && !grouped && node.int(self.api, "bits")? == Some(4)
            }
            "Gelu" => {
                matches!(node.text(self.api, "approximate")?.as_deref(), None | Some("none"))
            }
            // Over the last axis, which stays.
            "ReduceMean" => match (&node.inputs[..], &node.outputs[..]) {
                ([Some(x), ..], [Some(y)]) => {
                    let (mut from, to) = (x.shape.clone().unwrap_or_default(), &y.shape);
                    from.last_mut().is_some_and(|last| std::mem::replace(last, 1) > 1)
                        && Some(&from) == to.as_ref()
                }
                _ => false,
            },
            _ => true,
        };
        Ok((!plain).then(|| "not in the form that it takes".to_owned()))
    }

    /// Nodes that this provider takes: what it compiled before, and runs of nodes next to each other in
    /// the graph's order. Nothing lies between two nodes of a run that is not in it.
    fn claims(&self, graph: *const OrtGraph) -> Result<Vec<Vec<*const OrtNode>>, String> {
        let mut groups = Vec::new();
        let mut group = Vec::new();
        for node in nodes(self.api, graph)? {
            if node.op == CONTEXT {
                if node.text(self.api, "source")?.as_deref() == Some(NAME) {
                    groups.push(vec![node.pointer]);
                }
            } else if self.refusal(&node)?.is_none() {
                group.push(node.pointer);
                continue;
            }
            groups.push(std::mem::take(&mut group));
        }
        groups.push(group);
        groups.retain(|group| !group.is_empty());
        Ok(groups)
    }

    fn compiled(&self, graph: *const OrtGraph, fused: &Node) -> Result<Program, String> {
        let all = nodes(self.api, graph)?;
        if let [only] = &all[..]
            && only.op == CONTEXT
        {
            let text = only.text(self.api, "ep_cache_context")?.unwrap_or_default();
            return Program::read(&text);
        }
        let mut builder = Builder::default();
        for value in fused.inputs.iter().flatten().filter(|value| !value.is_constant) {
            let place = builder.place(self.api, value)?;
            builder.program.inputs.push(place);
        }
        for node in &all {
            builder.step(self.api, node)?;
        }
        for value in fused.outputs.iter().flatten() {
            let place = builder.place(self.api, value)?;
            builder.program.outputs.push(place);
        }
        Ok(builder.program)
    }

    /// A node that holds a compiled program.
    fn context_node(&self, program: &Program, fused: &Node) -> Result<*mut OrtNode, String> {
        let api = self.api;
        let attribute = |name: &CStr, data: *const c_void, length: usize, kind| {
            let mut out = ptr::null_mut();
            let length = i32::try_from(length).map_err(|_| "too large a program".to_owned())?;
            call!(api, CreateOpAttr(name.as_ptr(), data, length, kind, &mut out))?;
            Ok::<*mut OrtOpAttr, String>(out)
        };
        let text = program.write()?;
        let one = 1i64;
        let number = ptr::from_ref(&one).cast();
        let (int, string) = (OrtOpAttrType::ORT_OP_ATTR_INT, OrtOpAttrType::ORT_OP_ATTR_STRING);
        let mut attributes = [
            attribute(c"main_context", number, 1, int)?,
            attribute(c"embed_mode", number, 1, int)?,
            attribute(c"ep_cache_context", text.as_ptr().cast(), text.len(), string)?,
            attribute(c"source", NAME.as_ptr().cast(), NAME.len(), string)?,
        ];
        let names = |values: &[Option<Value>]| {
            let there = values.iter().flatten().filter(|value| !value.is_constant);
            there.map(|value| CString::new(value.name.as_str())).collect::<Result<Vec<_>, _>>()
        };
        let error = |error: std::ffi::NulError| error.to_string();
        let (inputs, outputs) =
            (names(&fused.inputs).map_err(error)?, names(&fused.outputs).map_err(error)?);
        let pointers =
            |names: &[CString]| names.iter().map(|name| name.as_ptr()).collect::<Vec<_>>();
        let (inputs, outputs) = (pointers(&inputs), pointers(&outputs));
        // The name tells ONNX Runtime which of its nodes this stands for.
        let name = CString::new(fused.name.as_str()).map_err(error)?;
        // SAFETY: no arguments.
        let editor = unsafe { (api.ort.GetModelEditorApi)() };
        let mut out = ptr::null_mut();
        // SAFETY: a struct that lives as long as the library; texts and attributes are copied or taken.
        api.check(unsafe {
            ((*editor).CreateNode)(
                c"EPContext".as_ptr(),
                c"com.microsoft".as_ptr(),
                name.as_ptr(),
                inputs.as_ptr(),
                inputs.len(),
                outputs.as_ptr(),
                outputs.len(),
                attributes.as_mut_ptr(),
                attributes.len(),
                &mut out,
            )
        })?;
        Ok(out)
    }
}

/// A program being made; tensors are known by their names.
#[derive(Default)]
struct Builder {
    program: Program,
    places: HashMap<String, usize>,
}

impl Builder {
    fn place(&mut self, api: Api, value: &Value) -> Result<usize, String> {
        if let Some(&place) = self.places.get(&value.name) {
            return Ok(place);
        }
        let tensor = match value.is_constant {
            true => {
                let (shape, values) = value.constant(api)?;
                Tensor { shape, constant: Some(values) }
            }
            false => {
                let shape = value.shape.clone();
                let shape = shape.ok_or_else(|| format!("{}: no static shape", value.name))?;
                Tensor { shape, constant: None }
            }
        };
        let place = self.program.tensors.len();
        self.program.tensors.push(tensor);
        self.places.insert(value.name.clone(), place);
        Ok(place)
    }

    fn step(&mut self, api: Api, node: &Node) -> Result<(), String> {
        let mut places = |values: &[Option<Value>]| {
            let place = |value: &Option<Value>| match value {
                Some(value) => self.place(api, value).map(Some),
                None => Ok(None),
            };
            values.iter().map(place).collect::<Result<Vec<_>, String>>()
        };
        let read = node.read_values();
        let (inputs, outputs) = (places(read)?, places(&node.outputs)?);
        let size = |name: &str| {
            node.int(api, name)
                .map(|value| value.and_then(|v| usize::try_from(v).ok()).unwrap_or(0))
        };
        let attributes = Attributes {
            epsilon: node.float(api, "epsilon")?.unwrap_or(1e-5),
            rows: size("N")?,
            cols: size("K")?,
            bits: size("bits")?,
            block: size("block_size")?,
        };
        self.program.steps.push(Step { op: node.op.clone(), inputs, outputs, attributes });
        Ok(())
    }
}

/// Compiled nodes of a session; ONNX Runtime sees the first part.
#[repr(C)]
struct Compiled {
    interface: OrtNodeComputeInfo,
    api: Api,
    program: Program,
    faults: Faults,
    runs: Arc<AtomicU64>,
}

impl Compiled {
    fn run(&self, context: *mut OrtKernelContext) -> Result<(), String> {
        let api = self.api;
        self.faults.at(Place::Run, self.runs.fetch_add(1, Ordering::Relaxed))?;
        let mut inputs = Vec::with_capacity(self.program.inputs.len());
        for (index, &place) in self.program.inputs.iter().enumerate() {
            let mut value = ptr::null();
            call!(api, KernelContext_GetInput(context, index, &mut value))?;
            let (shape, values) = tensor(api, value)?;
            let expected = &self.program.tensors[place].shape;
            if shape != *expected {
                return Err(format!("input {index}: compiled for {expected:?}, got {shape:?}"));
            }
            inputs.push(values);
        }
        let results = self.program.run(inputs)?;
        for (index, (&place, values)) in self.program.outputs.iter().zip(results).enumerate() {
            let shape = &self.program.tensors[place].shape;
            if values.len() != shape.iter().product::<usize>() {
                return Err(format!("output {index}: expected {shape:?}, got {}", values.len()));
            }
            let dims: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
            let mut value = ptr::null_mut();
            call!(
                api,
                KernelContext_GetOutput(context, index, dims.as_ptr(), dims.len(), &mut value)
            )?;
            let mut data = ptr::null_mut();
            call!(api, GetTensorMutableData(value, &mut data))?;
            // SAFETY: ONNX Runtime made the tensor for this shape, of F32 as the graph says.
            unsafe { ptr::copy_nonoverlapping(values.as_ptr(), data.cast(), values.len()) };
        }
        Ok(())
    }
}

unsafe extern "system" fn get_name(_: *const OrtEp) -> *const c_char {
    NAME_TEXT.as_ptr()
}

/// The provider that ONNX Runtime hands over.
fn provider<'a>(ep: *const OrtEp) -> &'a Provider {
    // SAFETY: ONNX Runtime hands over providers that this library made and that it has not given back.
    unsafe { &*ep.cast::<Provider>() }
}

unsafe extern "system" fn get_capability(
    ep: *mut OrtEp,
    graph: *const OrtGraph,
    support: *mut Opaque,
) -> OrtStatusPtr {
    let this = provider(ep);
    guarded(this.api, || {
        this.faults.at(Place::Capability, 0)?;
        let options = FusionOptions { version: VERSION, drop_constants: true };
        for group in this.claims(graph)? {
            let add = this.api.ep.add_nodes_to_fuse;
            // SAFETY: nodes of this graph, as many as are counted; the options are read at once.
            this.api.check(unsafe { add(support, group.as_ptr(), group.len(), &options) })?;
        }
        Ok(())
    })
}

unsafe extern "system" fn compile(
    ep: *mut OrtEp,
    graphs: *const *const OrtGraph,
    fused: *const *const OrtNode,
    count: usize,
    infos: *mut *mut OrtNodeComputeInfo,
    contexts: *mut *mut OrtNode,
) -> OrtStatusPtr {
    let this = provider(ep);
    guarded(this.api, || {
        this.faults.at(Place::Compile, 0)?;
        for index in 0..count {
            // SAFETY: there are `count` graphs.
            let graph = unsafe { *graphs.add(index) };
            // SAFETY: and as many fused nodes.
            let fused = node(this.api, unsafe { *fused.add(index) })?;
            let program = this.compiled(graph, &fused)?;
            if this.writes_context && !contexts.is_null() {
                let context = this.context_node(&program, &fused)?;
                // SAFETY: there is a place for each.
                unsafe { *contexts.add(index) = context };
            }
            let interface =
                OrtNodeComputeInfo { version: VERSION, create_state, compute, release_state };
            let (faults, runs) = (this.faults.clone(), this.runs.clone());
            let compiled = Compiled { interface, api: this.api, program, faults, runs };
            // SAFETY: there is a place for each.
            unsafe { *infos.add(index) = Box::into_raw(Box::new(compiled)).cast() };
        }
        Ok(())
    })
}

unsafe extern "system" fn release_infos(
    _: *mut OrtEp,
    infos: *mut *mut OrtNodeComputeInfo,
    count: usize,
) {
    for index in 0..count {
        // SAFETY: there are `count` of them.
        let info = unsafe { *infos.add(index) };
        if !info.is_null() {
            // SAFETY: it came from `compile`, and is given back once.
            drop(unsafe { Box::from_raw(info.cast::<Compiled>()) });
        }
    }
}

/// Runs have no state of their own.
unsafe extern "system" fn create_state(
    info: *mut OrtNodeComputeInfo,
    _: *mut Opaque,
    state: *mut *mut c_void,
) -> OrtStatusPtr {
    // SAFETY: a place for the result, by the interface.
    unsafe { *state = info.cast() };
    OrtStatusPtr::default()
}

unsafe extern "system" fn release_state(_: *mut OrtNodeComputeInfo, _: *mut c_void) {}

unsafe extern "system" fn compute(
    info: *mut OrtNodeComputeInfo,
    _: *mut c_void,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime hands over what `compile` made and has not given back.
    let this = unsafe { &*info.cast::<Compiled>() };
    guarded(this.api, || this.run(context))
}
