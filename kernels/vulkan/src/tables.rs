//! The tables that shaders read behind the push constant `tables`: codebooks of the IQ formats.

use trefoil_kernels::blocks::{Grid, IQ4_VALUES};

/// Codebooks in the order in which they lie, with the names that `blocks/codebooks.glsl` gives their
/// first bytes.
const GRIDS: [(&str, Grid); 6] = [
    ("IQ1_S_GRID", Grid::Iq1S),
    ("IQ2_XXS_GRID", Grid::Iq2Xxs),
    ("IQ2_XS_GRID", Grid::Iq2Xs),
    ("IQ2_S_GRID", Grid::Iq2S),
    ("IQ3_XXS_GRID", Grid::Iq3Xxs),
    ("IQ3_S_GRID", Grid::Iq3S),
];
const IQ4_PAIRS: &str = "IQ4_PAIRS";

/// The bytes, about 34 KiB, to be put on a 16-byte boundary; every part begins on one.
///
/// First the codebooks, an element a signed byte. Then 256 pairs of half precision numbers: for a
/// byte of two IQ4 codes, the values of its low and of its high half.
pub fn tables() -> Vec<u8> {
    parts().into_iter().flat_map(|(_, bytes)| bytes).collect()
}

fn parts() -> Vec<(&'static str, Vec<u8>)> {
    let value = |code: usize| half::f16::from(IQ4_VALUES[code]).to_le_bytes();
    let pairs = (0..256).flat_map(|byte| [value(byte & 15), value(byte >> 4)]).flatten().collect();
    GRIDS
        .iter()
        .map(|(name, grid)| (*name, grid.vectors().iter().map(|element| *element as u8).collect()))
        .chain([(IQ4_PAIRS, pairs)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shaders_find_the_tables_where_they_lie() {
        let mut offset = 0;
        for (name, bytes) in parts() {
            let text = include_str!("../shaders/blocks/codebooks.glsl");
            let defined = text.lines().find_map(|line| {
                let (key, value) = line.strip_prefix("#define ")?.split_once(' ')?;
                (key == name).then(|| value.parse::<usize>().ok())?
            });
            assert_eq!(defined, Some(offset), "{name} in codebooks.glsl");
            assert_eq!(offset % 16, 0, "{name}");
            offset += bytes.len();
        }
        assert_eq!(tables().len(), offset);
    }
}
