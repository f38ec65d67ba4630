//! Writes a model of made-up weights: `make_model --shape SHAPE --quant QUANT --tokenizer FILE OUT`.
//!
//! Shapes are those of published models (`qwen3-0.6b`, `qwen3-1.7b`), formats `Q4_0`, `Q8_0`,
//! `Q4_K_M`, `F16`. The tokenizer's metadata come from any GGUF file of the same family, which other
//! programs ask for before they load a file; without one there is none. What comes out of such a
//! model means nothing: it is for measuring time.

use std::path::Path;

use trefoil_benches::synthetic::{Quant, Shape, write};
use trefoil_graph::ModelFile;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut shape = Shape::QWEN3_0_6B;
    let mut quant = Quant::Q4KM;
    let mut tokenizer = None;
    let mut out = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--shape" => {
                let name = value()?;
                shape = Shape::named(&name).ok_or_else(|| format!("no shape {name}"))?;
            }
            "--quant" => {
                let name = value()?;
                quant = Quant::named(&name).ok_or_else(|| format!("no format {name}"))?;
            }
            "--tokenizer" => tokenizer = Some(ModelFile::open(Path::new(&value()?))?),
            _ => out = Some(arg),
        }
    }
    let out = out.ok_or("usage: make_model --shape SHAPE --quant QUANT --tokenizer FILE OUT")?;
    write(Path::new(&out), shape, quant, tokenizer.as_ref().map(|file| &file.metadata))?;
    Ok(())
}
