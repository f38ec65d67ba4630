//! The largest elements of rows.

use crate::dispatch::{Dispatch, Place};

/// Most elements of a row that can be found.
pub const MOST_CANDIDATES: usize = 64;

/// How the largest elements of rows are found, in two launches: the best of each slice of a row, then
/// the best of those. `candidates.comp` says which sizes it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Largest {
    rows: u32,
    width: u32,
    count: u32,
    slices: u32,
}

impl Largest {
    /// Elements of a slice, at least; more where there would be too many slices.
    const SLICE: u32 = 2048;

    /// For `rows` rows of `width` elements, `count` of each; `None` where that is more than
    /// [`MOST_CANDIDATES`], more than a row has, or rows are too long.
    pub fn new(rows: usize, width: usize, count: usize) -> Option<Self> {
        let fits = count > 0 && count <= MOST_CANDIDATES && count <= width && rows > 0;
        let [rows, width, count] = [rows, width, count].map(u32::try_from);
        let (rows, width, count) = (rows.ok()?, width.ok()?, count.ok()?);
        // Of a slice, and of all slices' best, a workgroup keeps this many at most.
        let most = 256 * 2048 / count.max(1);
        let slices = width.div_ceil(Self::SLICE).min(most / count.max(1)).max(1);
        let slice = width.div_ceil(slices);
        (fits && slice >= count && slice <= most).then_some(Self { rows, width, count, slices })
    }

    /// Bytes between the launches: [`Place::Slot`] 0.
    pub fn key_bytes(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.slices) * u64::from(self.count) * 8
    }

    /// Bytes of the result, a place (u32) and a value (f32) for each: [`Place::Output`] 0.
    pub fn result_bytes(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.count) * 8
    }

    /// The launches; rows are read from [`Place::Input`] 0.
    pub fn dispatches(&self) -> [Dispatch; 2] {
        let Self { rows, width, count, slices } = *self;
        [(0, slices), (1, 1)].map(|(merge, groups)| {
            let dispatch = Dispatch::new("candidates", &[count, merge], [groups, rows, 1]);
            let dispatch = dispatch.read((Place::Input(0), 0)).update((Place::Slot(0), 0));
            let dispatch = dispatch.write((Place::Output(0), 0));
            dispatch.words([width, width.div_ceil(slices), slices])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_keep_to_what_the_shader_takes() {
        for width in [1, 64, 2048, 2049, 32_000, 152_064, 262_144, 1 << 20] {
            for count in [1, 2, 40, 64] {
                let Some(found) = Largest::new(3, width, count) else {
                    assert!(count > width || width > 1 << 19, "{count} of {width}");
                    continue;
                };
                let slice = found.width.div_ceil(found.slices);
                assert!(slice >= found.count && slice <= 256 * 2048 / found.count);
                assert!(found.slices * found.count <= 256 * 2048 / found.count);
                // No slice lies past the end.
                assert!((found.slices - 1) * slice < found.width, "{count} of {width}");
            }
        }
        assert_eq!(Largest::new(1, 100, 65), None);
        assert_eq!(Largest::new(1, 10, 11), None);
    }
}
