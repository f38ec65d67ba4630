//! Compiles the shaders to SPIR-V: every variant that `variants` lists, into one file with a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use glslang::{
    Compiler, CompilerOptions, ShaderInput, ShaderSource, ShaderStage, SourceLanguage,
    SpirvVersion, Target, VulkanVersion,
};

/// Shaders that exist once per block type, next to the block's own file in `shaders/blocks`.
const PER_BLOCK: &[&str] =
    &["linear_vec", "linear_mat", "linear_coop", "unpack", "embed", "experts_vec", "experts_mat"];

/// Shaders that exist once, or once per set of definitions.
const SINGLE: &[(&str, &str, &[&str])] = &[
    ("norm", "norm", &[]),
    ("to_half", "to_half", &[]),
    ("product_coop", "linear_coop", &["PLAIN"]),
    ("rope", "rope", &[]),
    ("attention_in", "attention_in", &[]),
    ("attention_vec", "attention_vec", &[]),
    ("attention_entry", "attention_vec", &["ENTRY"]),
    ("attention_coop", "attention_coop", &[]),
    ("rows", "rows", &[]),
    ("normalise", "normalise", &[]),
    ("elementwise", "elementwise", &[]),
    ("route", "route", &[]),
    ("candidates", "candidates", &[]),
    ("awake", "awake", &[]),
    ("experts_group", "experts_group", &[]),
    ("experts_sum", "experts_sum", &[]),
];

struct Variant {
    name: String,
    file: PathBuf,
    definitions: Vec<String>,
}

fn variants(shaders: &Path) -> Vec<Variant> {
    let mut blocks: Vec<String> = std::fs::read_dir(shaders.join("blocks"))
        .expect("shaders/blocks is there")
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            // Files with a capital letter are block types; others are shared between them.
            let stem = name.strip_suffix(".glsl")?;
            stem.starts_with(|c: char| c.is_ascii_uppercase()).then(|| stem.to_owned())
        })
        .collect();
    blocks.sort();
    let with_dot = |block: &&String| {
        let mut text = String::new();
        expand(&shaders.join(format!("blocks/{block}.glsl")), shaders, None, &mut text);
        text.contains("#define DOT_SPANS")
    };
    let dot = blocks.iter().filter(with_dot).flat_map(|block| {
        [("linear_dot", None), ("linear_dots", Some("BESIDE"))].map(|(name, more)| Variant {
            name: format!("{name}.{block}"),
            file: shaders.join("linear_dot.comp"),
            definitions: std::iter::once(format!("BLOCK_FILE blocks/{block}.glsl"))
                .chain(more.map(str::to_owned))
                .collect(),
        })
    });
    let dot: Vec<Variant> = dot.collect();
    let per_block = PER_BLOCK.iter().flat_map(|shader| {
        blocks.iter().map(move |block| Variant {
            name: format!("{shader}.{block}"),
            file: shaders.join(format!("{shader}.comp")),
            definitions: vec![format!("BLOCK_FILE blocks/{block}.glsl")],
        })
    });
    let single = SINGLE.iter().map(|(name, file, definitions)| Variant {
        name: (*name).to_owned(),
        file: shaders.join(format!("{file}.comp")),
        definitions: definitions.iter().map(|&text| text.to_owned()).collect(),
    });
    per_block.chain(dot).chain(single).collect()
}

/// The text of `file` with `#include "…"` lines replaced by the files they name (relative to
/// `shaders`). `#include BLOCK_FILE` names the file that the variant defines.
fn expand(file: &Path, shaders: &Path, block: Option<&str>, out: &mut String) {
    let text =
        std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    for line in text.lines() {
        match line.strip_prefix("#include ") {
            // Variants of no block type leave the part out that uses it.
            Some("BLOCK_FILE") => {
                if let Some(block) = block {
                    expand(&shaders.join(block), shaders, Some(block), out);
                }
            }
            Some(name) => expand(&shaders.join(name.trim_matches('"')), shaders, block, out),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
}

fn compile(variant: &Variant, shaders: &Path) -> Vec<u32> {
    let block = variant.definitions.iter().find_map(|d| d.strip_prefix("BLOCK_FILE "));
    let mut body = String::new();
    expand(&variant.file, shaders, block, &mut body);
    let mut text = String::from("#version 460\n");
    for definition in variant.definitions.iter().filter(|d| !d.starts_with("BLOCK_FILE")) {
        writeln!(text, "#define {definition}").expect("strings take text");
    }
    text.push_str(&body);
    let options = CompilerOptions {
        source_language: SourceLanguage::GLSL,
        target: Target::Vulkan {
            version: VulkanVersion::Vulkan1_2,
            spirv_version: SpirvVersion::SPIRV1_5,
        },
        ..CompilerOptions::default()
    };
    let fail = |error: &dyn std::fmt::Display| -> ! {
        let numbered: String =
            text.lines().enumerate().map(|(i, line)| format!("{:4} {line}\n", i + 1)).collect();
        panic!("{}:\n{numbered}\n{error}", variant.name)
    };
    let compiler = Compiler::acquire().expect("the compiler starts");
    let source = ShaderSource::from(text.as_str());
    let input = match ShaderInput::new(&source, ShaderStage::Compute, &options, None, None) {
        Ok(input) => input,
        Err(error) => fail(&error),
    };
    let shader = match compiler.create_shader(input) {
        Ok(shader) => shader,
        Err(error) => fail(&error),
    };
    match shader.compile() {
        Ok(words) => words,
        Err(error) => fail(&error),
    }
}

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    let shaders = root.join("shaders");
    println!("cargo::rerun-if-changed={}", shaders.display());
    let mut words = Vec::new();
    let mut table = BTreeMap::new();
    for variant in variants(&shaders) {
        let code = compile(&variant, &shaders);
        let range = (words.len(), words.len() + code.len());
        words.extend(code);
        assert!(table.insert(variant.name.clone(), range).is_none(), "{} twice", variant.name);
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    std::fs::write(out.join("shaders.spv"), bytes).expect("OUT_DIR can be written");
    let mut text = String::from("&[\n");
    for (name, (first, end)) in table {
        writeln!(text, "    ({name:?}, {first}..{end}),").expect("strings take text");
    }
    text.push(']');
    std::fs::write(out.join("shaders.rs"), text).expect("OUT_DIR can be written");
}
