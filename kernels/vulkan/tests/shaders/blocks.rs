//! Every block type as `embed` reads it, against the codecs.

use safetensors::SafeTensors;
use trefoil_graph::{BLOCK_TABLE, BlockType, Weight};
use trefoil_kernels::blocks::decode_row;
use trefoil_kernels::cases::{Random, weight, weight_formats};
use trefoil_kernels_vulkan::tables;

use crate::gpu::{Gpu, Push, open};

/// Rows 0.. of a weight's bytes, as `embed` decodes them.
fn embed(gpu: &mut Gpu, block: BlockType, bytes: &[u8], rows: usize, cols: usize) -> Vec<f32> {
    let weights = gpu.put(bytes);
    let indices = gpu.put(&(0..rows as u32).collect::<Vec<_>>());
    let out = gpu.space(rows * cols * 4);
    let tables = gpu.put(&tables());
    let push = Push::new(&[weights, indices, out, tables]).word(cols).word(0).word(rows);
    let push = push.number(1.0).word(0).word(0);
    gpu.run(&format!("embed.{}", block.name()), &[], &push.0, [rows as u32, 1, 1]);
    gpu.read(out, rows * cols)
}

fn assert_same(block: BlockType, got: &[f32], want: &[f32]) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got.to_bits() == want.to_bits() || (*got == 0.0 && *want == 0.0);
        assert!(same, "{block} element {i}: {got:e} is not {want:e}");
    }
}

fn decoded(weight: &Weight) -> Vec<f32> {
    let mut values = vec![0.0; weight.rows * weight.cols];
    for (row, values) in values.chunks_exact_mut(weight.cols).enumerate() {
        decode_row(weight.block, weight.row(row), values);
    }
    values
}

fn bytes(weight: &Weight) -> Vec<u8> {
    (0..weight.rows).flat_map(|row| weight.row(row).to_vec()).collect()
}

#[test]
fn random_blocks_decode_as_the_reference_does() {
    let Some(mut gpu) = open() else { return };
    let mut random = Random::new(3);
    for block in weight_formats() {
        // An odd number of blocks in a row, so that rows begin on every boundary that they can.
        let cols = (3 * block.info().elements).next_multiple_of(4);
        let weight = weight(&mut random, "w", block, 9, cols);
        let got = embed(&mut gpu, block, &bytes(&weight), 9, cols);
        assert_same(block, &got, &decoded(&weight));
    }
}

#[test]
fn golden_blocks_decode_to_the_golden_values() {
    let Some(mut gpu) = open() else { return };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/quants/blocks.safetensors");
    let file = std::fs::read(path).expect("tests/data is part of the tree");
    let tensors = SafeTensors::deserialize(&file).expect("well-formed golden file");
    let mut tested = 0;
    for row in BLOCK_TABLE.iter().filter(|row| weight_formats().any(|block| block == row.block)) {
        let Ok(raw) = tensors.tensor(&format!("{}.raw", row.name)) else { continue };
        let values = tensors.tensor(&format!("{}.values", row.name)).expect(row.name);
        let want: Vec<f32> =
            values.data().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        let got = embed(&mut gpu, row.block, raw.data(), 1, want.len());
        assert_same(row.block, &got, &want);
        tested += 1;
    }
    assert!(tested > 20, "{tested} formats have golden blocks");
}
