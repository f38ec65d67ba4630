//! What can be wrong with an ONNX model.

/// Why an ONNX model was refused. The file's name is added where the file was opened
/// ([`ModelFileError`](crate::ModelFileError)).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what each field is
pub enum OnnxError {
    #[error("{message}, byte {at}: expected {expected}; is the file truncated, or no ONNX model?")]
    Wire { message: &'static str, at: usize, expected: &'static str },
    #[error("{message}: expected {expected}, got {got}")]
    Message { message: &'static str, expected: &'static str, got: String },
    #[error("expected at most {most} {what}, got more")]
    TooMany { what: &'static str, most: usize },
    #[error("tensor `{tensor}`: expected {expected}, got {got}")]
    Tensor { tensor: String, expected: String, got: String },
    #[error(
        "tensor `{tensor}`: expected its data in a file in the model's folder, got `{path}`; \
         put all files of the model in one folder, as files and not as links"
    )]
    Outside { tensor: String, path: String },
    #[error("tensor `{tensor}`: its file `{path}` is not there; put all files in one folder")]
    NoSuchFile { tensor: String, path: String },
    #[error("tensors `{first}` and `{second}` share a part of their data")]
    Overlap { first: String, second: String },
    #[error("op {op} (node `{node}`): {why}; trefoil cannot lower this model to its layer graph")]
    Op { op: String, node: String, why: String },
    #[error("{place}: expected {expected}, got {got}; trefoil cannot lower this model")]
    Structure { place: String, expected: String, got: String },
    #[error("no output is one that can be lowered (logits, or hidden states of an encoder): {got}")]
    NoOutput { got: String },
    #[error("{file}: field `{field}`: expected {expected}, got {got}")]
    Config { file: &'static str, field: String, expected: String, got: String },
    #[error("expected JSON of the usual form")]
    Json(#[source] serde_json::Error),
    #[error("expected a file of at most {most} bytes, got {got}")]
    TooLarge { most: u64, got: u64 },
    #[error("weights in the layout that is needed would take more than {most} bytes of copies")]
    Copies { most: u64 },
}
