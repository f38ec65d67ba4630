use std::ops::Range;

static WORDS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shaders.spv"));
static TABLE: &[(&str, Range<usize>)] = include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// SPIR-V of a shader by its name (`linear_vec.Q4_K`, `norm`), `None` if there is none.
pub fn shader(name: &str) -> Option<Vec<u32>> {
    let index = TABLE.binary_search_by_key(&name, |(name, _)| name).ok()?;
    let Range { start, end } = TABLE[index].1.clone();
    let bytes = WORDS[start * 4..end * 4].chunks_exact(4);
    Some(bytes.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// Is there a shader of this name?
pub(crate) fn has_shader(name: &str) -> bool {
    TABLE.binary_search_by_key(&name, |(name, _)| name).is_ok()
}

/// Names of all shaders.
pub fn shaders() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shader_is_a_spirv_module() {
        assert!(shaders().count() > 0);
        for name in shaders() {
            let words = shader(name).expect("named in the table");
            assert_eq!(words[0], 0x0723_0203, "{name} begins with SPIR-V's magic number");
        }
        assert!(shader("no such shader").is_none());
    }
}
