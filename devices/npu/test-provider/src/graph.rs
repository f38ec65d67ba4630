//! Reading ONNX Runtime's graphs: nodes, values, attributes, constants.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;

use ort_sys::{
    ONNXTensorElementDataType, OrtGraph, OrtNode, OrtOpAttrType, OrtTensorTypeAndShapeInfo,
    OrtValue, OrtValueInfo,
};

use crate::ffi::{Api, call};
use crate::program::{Shape, reads_one};

const FLOAT: ONNXTensorElementDataType =
    ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
const BYTE: ONNXTensorElementDataType =
    ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;

/// A value between nodes.
pub(crate) struct Value {
    pub(crate) name: String,
    /// `None` if it is not known before a run.
    pub(crate) shape: Option<Shape>,
    pub(crate) is_float: bool,
    pub(crate) is_byte: bool,
    pub(crate) is_constant: bool,
    info: *const OrtValueInfo,
}

/// A node with what it reads and writes; `None` for what is left out.
pub(crate) struct Node {
    pub(crate) pointer: *const OrtNode,
    pub(crate) name: String,
    pub(crate) op: String,
    pub(crate) domain: String,
    pub(crate) inputs: Vec<Option<Value>>,
    pub(crate) outputs: Vec<Option<Value>>,
}

fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: a text of ONNX Runtime's that stays during the call this is part of.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The nodes of a graph, each after those that it reads.
pub(crate) fn nodes(api: Api, graph: *const OrtGraph) -> Result<Vec<Node>, String> {
    let mut count = 0;
    call!(api, Graph_GetNumNodes(graph, &mut count))?;
    let mut pointers = vec![ptr::null::<OrtNode>(); count];
    call!(api, Graph_GetNodes(graph, pointers.as_mut_ptr(), count))?;
    pointers.into_iter().map(|pointer| node(api, pointer)).collect()
}

/// A node.
pub(crate) fn node(api: Api, pointer: *const OrtNode) -> Result<Node, String> {
    let (mut name, mut op, mut domain) = (ptr::null(), ptr::null(), ptr::null());
    call!(api, Node_GetName(pointer, &mut name))?;
    call!(api, Node_GetOperatorType(pointer, &mut op))?;
    call!(api, Node_GetDomain(pointer, &mut domain))?;
    let (mut inputs, mut outputs) = (0, 0);
    call!(api, Node_GetNumInputs(pointer, &mut inputs))?;
    call!(api, Node_GetNumOutputs(pointer, &mut outputs))?;
    let mut read = vec![ptr::null::<OrtValueInfo>(); inputs];
    let mut written = vec![ptr::null::<OrtValueInfo>(); outputs];
    call!(api, Node_GetInputs(pointer, read.as_mut_ptr(), inputs))?;
    call!(api, Node_GetOutputs(pointer, written.as_mut_ptr(), outputs))?;
    let values = |infos: Vec<*const OrtValueInfo>| {
        infos.into_iter().map(|info| value(api, info)).collect::<Result<Vec<_>, _>>()
    };
    Ok(Node {
        pointer,
        name: text(name),
        op: text(op),
        domain: text(domain),
        inputs: values(read)?,
        outputs: values(written)?,
    })
}

fn value(api: Api, info: *const OrtValueInfo) -> Result<Option<Value>, String> {
    if info.is_null() {
        return Ok(None);
    }
    let mut name = ptr::null();
    call!(api, GetValueInfoName(info, &mut name))?;
    let name = text(name);
    if name.is_empty() {
        return Ok(None);
    }
    let mut types = ptr::null();
    call!(api, GetValueInfoTypeInfo(info, &mut types))?;
    let mut tensor = ptr::null();
    call!(api, CastTypeInfoToTensorInfo(types, &mut tensor))?;
    let mut is_constant = false;
    call!(api, ValueInfo_IsConstantInitializer(info, &mut is_constant))?;
    let (mut shape, mut element) = (None, None);
    if !tensor.is_null() {
        let (found, kind) = shape_of(api, tensor)?;
        element = Some(kind);
        shape = found.into_iter().map(|dim| usize::try_from(dim).ok()).collect();
    }
    Ok(Some(Value {
        name,
        shape,
        is_float: element == Some(FLOAT),
        is_byte: element == Some(BYTE),
        is_constant,
        info,
    }))
}

/// Dimensions, negative where they are not known, and element type.
fn shape_of(
    api: Api,
    tensor: *const OrtTensorTypeAndShapeInfo,
) -> Result<(Vec<i64>, ONNXTensorElementDataType), String> {
    let mut element = FLOAT;
    call!(api, GetTensorElementType(tensor, &mut element))?;
    let mut rank = 0;
    call!(api, GetDimensionsCount(tensor, &mut rank))?;
    let mut dims = vec![0i64; rank];
    call!(api, GetDimensions(tensor, dims.as_mut_ptr(), rank))?;
    Ok((dims, element))
}

/// A tensor's shape and values; those of bytes as numbers.
pub(crate) fn tensor(api: Api, value: *const OrtValue) -> Result<(Shape, Vec<f32>), String> {
    let mut info = ptr::null_mut();
    call!(api, GetTensorTypeAndShape(value, &mut info))?;
    let facts = shape_of(api, info);
    // SAFETY: the information is ours to release, once.
    unsafe { (api.ort.ReleaseTensorTypeAndShapeInfo)(info) };
    let (dims, element) = facts?;
    let known = dims.iter().map(|&dim| usize::try_from(dim)).collect::<Result<Shape, _>>();
    let shape = known.map_err(|_| format!("expected a shape, got {dims:?}"))?;
    let count = shape.iter().product();
    let mut data = ptr::null_mut();
    call!(api, GetTensorMutableData(value.cast_mut(), &mut data))?;
    let values = match element {
        _ if count == 0 => Vec::new(),
        FLOAT => {
            // SAFETY: the tensor has so many elements of this type, and is not changed meanwhile.
            unsafe { std::slice::from_raw_parts(data.cast::<f32>(), count) }.to_vec()
        }
        BYTE => {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), count) };
            bytes.iter().map(|&byte| f32::from(byte)).collect()
        }
        other => return Err(format!("expected F32 or bytes, got {other:?}")),
    };
    Ok((shape, values))
}

impl Value {
    /// The values of a constant.
    pub(crate) fn constant(&self, api: Api) -> Result<(Shape, Vec<f32>), String> {
        let mut value = ptr::null();
        call!(api, ValueInfo_GetInitializerValue(self.info, &mut value))?;
        if value.is_null() {
            return Err(format!("{}: expected a constant's values", self.name));
        }
        tensor(api, value)
    }
}

impl Node {
    /// Reads an attribute of a type into a place; false if there is none.
    fn read(
        &self,
        api: Api,
        name: &str,
        kind: OrtOpAttrType,
        (place, size): (*mut c_void, usize),
    ) -> Result<Option<usize>, String> {
        let name = CString::new(name).map_err(|error| error.to_string())?;
        let mut attribute = ptr::null();
        // What is not there is an error in some versions, and nothing in others.
        let found =
            call!(api, Node_GetAttributeByName(self.pointer, name.as_ptr(), &mut attribute));
        if found.is_err() || attribute.is_null() {
            return Ok(None);
        }
        let mut read = 0;
        let result = call!(api, ReadOpAttr(attribute, kind, place, size, &mut read));
        match result {
            // Too small a place: how large it must be was written.
            Err(_) if size == 0 && read > 0 => Ok(Some(read)),
            Err(error) => Err(error),
            Ok(()) => Ok(Some(read)),
        }
    }

    /// The inputs that are tensors of numbers.
    pub(crate) fn read_values(&self) -> &[Option<Value>] {
        match self.inputs.len() {
            0 => &[],
            _ if reads_one(&self.op) => &self.inputs[..1],
            _ => &self.inputs,
        }
    }

    /// An integer attribute.
    pub(crate) fn int(&self, api: Api, name: &str) -> Result<Option<i64>, String> {
        let mut value = 0i64;
        let place = (ptr::from_mut(&mut value).cast(), size_of::<i64>());
        let found = self.read(api, name, OrtOpAttrType::ORT_OP_ATTR_INT, place)?;
        Ok(found.map(|_| value))
    }

    /// A number attribute.
    pub(crate) fn float(&self, api: Api, name: &str) -> Result<Option<f32>, String> {
        let mut value = 0f32;
        let place = (ptr::from_mut(&mut value).cast(), size_of::<f32>());
        let found = self.read(api, name, OrtOpAttrType::ORT_OP_ATTR_FLOAT, place)?;
        Ok(found.map(|_| value))
    }

    /// A text attribute.
    pub(crate) fn text(&self, api: Api, name: &str) -> Result<Option<String>, String> {
        let kind = OrtOpAttrType::ORT_OP_ATTR_STRING;
        let Some(size) = self.read(api, name, kind, (ptr::null_mut(), 0))? else {
            return Ok(None);
        };
        let mut bytes = vec![0u8; size];
        let place = (bytes.as_mut_ptr().cast(), size);
        self.read(api, name, kind, place)?;
        Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()))
    }
}
