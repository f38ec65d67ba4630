//! Results of which only the largest elements leave the device.

use std::sync::Arc;

use trefoil_devices_api::{
    Buffer, BufferId, Candidate, DeviceError, DomainId, MemoryManager, Work,
};
use trefoil_graph::StepInputs;
use trefoil_graph::ops::TensorShape;

/// Where the largest elements of a result come from.
#[derive(Debug)]
pub(super) struct LargestOf {
    /// Queue of the device that finds them.
    pub(super) lane: usize,
    pub(super) label: Arc<str>,
    from: Buffer,
    to: Buffer,
    shape: TensorShape,
    most: usize,
}

impl LargestOf {
    /// For up to `rows` rows of a result in `from`, at most `most` elements of each.
    pub(super) fn new(
        memory: &MemoryManager,
        lane: usize,
        from: Buffer,
        rows: usize,
        shape: TensorShape,
        most: usize,
    ) -> Result<Self, DeviceError> {
        let bytes = rows * most * size_of::<Candidate>();
        let to = memory.host_buffer(bytes, "activations")?;
        let label = "largest elements of the result".into();
        Ok(Self { lane, label, from, to, shape, most })
    }

    /// Can it find so many of a row?
    pub(super) fn takes(&self, count: usize) -> bool {
        (1..=self.most.min(self.shape.width)).contains(&count)
    }

    /// Where the result lies.
    pub(super) fn domain(&self) -> DomainId {
        self.from.domain
    }

    /// Bytes of the result of a step.
    pub(super) fn bytes(&self, count: usize, step: &StepInputs) -> usize {
        step.count(self.shape.rows) * count * size_of::<Candidate>()
    }

    /// The work of a step.
    pub(super) fn work(&self, count: usize, step: &StepInputs) -> Result<Work, DeviceError> {
        let width = self.shape.width;
        let from = self.from.view(0..step.count(self.shape.rows) * width * size_of::<f32>())?;
        let to = self.to.view(0..self.bytes(count, step))?;
        Ok(Work::Largest { from, width, count, to })
    }

    /// Writes what was found into the host's form of the result.
    pub(super) fn spread(
        &self,
        count: usize,
        rows: usize,
        result: &Buffer,
        sparse: &mut Sparse,
    ) -> Result<(), DeviceError> {
        let found = self.to.read()?;
        let mut bytes = result.write()?;
        let values: &mut [f32] = bytemuck::cast_slice_mut(&mut bytes);
        let width = self.shape.width;
        let places = sparse.cleared(result, &mut values[..rows * width]);
        let row_bytes = count * size_of::<Candidate>();
        for (row, found) in found.chunks_exact(row_bytes).take(rows).enumerate() {
            for candidate in bytemuck::cast_slice::<u8, Candidate>(found) {
                let place = candidate.id as usize;
                if place < width {
                    values[row * width + place] = candidate.value;
                    places.push(row * width + place);
                }
            }
        }
        Ok(())
    }
}

/// A result in host memory of which few elements are numbers and the others negative infinity.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    buffer: Option<BufferId>,
    /// Elements that are negative infinity but for those in `places`.
    cleared: usize,
    places: Vec<usize>,
}

impl Sparse {
    /// Makes all of `values`, the front of `buffer`, negative infinity. Returns the list for the places
    /// that get numbers.
    fn cleared(&mut self, buffer: &Buffer, values: &mut [f32]) -> &mut Vec<usize> {
        if self.buffer != Some(buffer.id) || self.places.iter().any(|&at| at >= values.len()) {
            *self = Self { buffer: Some(buffer.id), ..Self::default() };
        }
        self.places.drain(..).for_each(|at| values[at] = f32::NEG_INFINITY);
        if let Some(rest) = values.get_mut(self.cleared..) {
            rest.fill(f32::NEG_INFINITY);
        }
        self.cleared = self.cleared.max(values.len());
        &mut self.places
    }

    /// Notes that other numbers were written.
    pub(super) fn overwritten(&mut self) {
        self.buffer = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_before_is_cleared() {
        let buffer = Buffer::host(4 * 6);
        let mut values = [1.0; 6];
        let mut sparse = Sparse::default();
        let mut set = |values: &mut [f32], places: &[usize]| {
            let list = sparse.cleared(&buffer, values);
            list.extend(places);
            places.iter().for_each(|&at| values[at] = 2.0);
        };
        const NONE: f32 = f32::NEG_INFINITY;
        set(&mut values[..3], &[1]);
        assert_eq!(values, [NONE, 2.0, NONE, 1.0, 1.0, 1.0]);
        set(&mut values, &[0, 4]);
        assert_eq!(values, [2.0, NONE, NONE, NONE, 2.0, NONE]);
        // Fewer rows, then more again.
        set(&mut values[..3], &[2]);
        assert_eq!(values[..3], [NONE, NONE, 2.0]);
        set(&mut values, &[]);
        assert_eq!(values, [NONE; 6]);
        values.fill(1.0);
        sparse.overwritten();
        sparse.cleared(&buffer, &mut values);
        assert_eq!(values, [NONE; 6]);
    }
}
