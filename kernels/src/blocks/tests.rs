//! Decoders against golden blocks, encoders against the published errors of the formats.

use std::path::PathBuf;

use safetensors::SafeTensors;
use trefoil_graph::{BLOCK_TABLE, BlockType};

use super::*;
use crate::testing::{nmse, normal};

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Formats that no file uses for weights, so that the golden data leave them out.
fn has_no_golden(block: BlockType) -> bool {
    block.is_float() || block.is_integer() || matches!(block, BlockType::Q8_1 | BlockType::Q8_K)
}

#[test]
fn random_bits_decode_to_the_golden_values() {
    let bytes = std::fs::read(workspace().join("tests/data/quants/blocks.safetensors"))
        .expect("tests/data is part of the tree");
    let tensors = SafeTensors::deserialize(&bytes).expect("well-formed golden file");
    for row in BLOCK_TABLE.iter().filter(|row| !has_no_golden(row.block)) {
        let raw = tensors.tensor(&format!("{}.raw", row.name)).expect(row.name);
        let want = f32s(tensors.tensor(&format!("{}.values", row.name)).expect(row.name).data());
        let mut got = vec![0.0; want.len()];
        decode_row(row.block, raw.data(), &mut got);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let same = got.to_bits() == want.to_bits() || (*got == 0.0 && *want == 0.0);
            assert!(same, "{} element {i}: {got:e} is not {want:e}", row.name);
        }
    }
}

#[test]
fn plain_numbers_decode_to_themselves() {
    let mut out = [0.0; 2];
    decode_row(BlockType::F64, &[1.5f64, -2.25].map(f64::to_le_bytes).concat(), &mut out);
    assert_eq!(out, [1.5, -2.25]);
    decode_row(BlockType::I8, &[0x80, 3], &mut out);
    assert_eq!(out, [-128.0, 3.0]);
    decode_row(BlockType::I16, &[-300i16, 300].map(i16::to_le_bytes).concat(), &mut out);
    assert_eq!(out, [-300.0, 300.0]);
    decode_row(BlockType::I32, &[-70000i32, 7].map(i32::to_le_bytes).concat(), &mut out);
    assert_eq!(out, [-70000.0, 7.0]);
    decode_row(BlockType::I64, &[-1i64 << 40, 7].map(i64::to_le_bytes).concat(), &mut out);
    assert_eq!(out, [-(2f32.powi(40)), 7.0]);
    decode_row(BlockType::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut out);
    assert_eq!(out, [1.0, -2.0]);
}

#[test]
fn eight_bit_blocks_skip_their_sums() {
    let mut block = [0u8; 36];
    block[..2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
    block[2..4].copy_from_slice(&[0xff, 0xff]);
    block[4] = 0xfe;
    let mut out = [0.0; 32];
    decode_row(BlockType::Q8_1, &block, &mut out);
    assert_eq!((out[0], out[1]), (-1.0, 0.0));
    let mut block = [0u8; 292];
    block[..4].copy_from_slice(&0.25f32.to_le_bytes());
    block[4 + 255] = 100;
    let mut out = [0.0; 256];
    decode_row(BlockType::Q8_K, &block, &mut out);
    assert_eq!((out[0], out[255]), (0.0, 25.0));
}

fn round_trip(block: BlockType, row: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; block.row_bytes(row.len() as u64).expect("whole blocks") as usize];
    encode_row(block, row, &mut bytes);
    let mut back = vec![0.0; row.len()];
    decode_row(block, &bytes, &mut back);
    back
}

/// ggml's own encoders on the golden models' weights (normally distributed), golden/README.md.
const ENCODED: [(BlockType, f64); 6] = [
    (BlockType::F16, 4.3e-8),
    (BlockType::BF16, 2.7e-6),
    (BlockType::Q8_0, 2.9e-5),
    (BlockType::Q4_0, 7.4e-3),
    (BlockType::Q4_K, 5.1e-3),
    (BlockType::Q6_K, 3.1e-4),
];

#[test]
fn encoders_lose_no_more_than_the_published_errors() {
    let row = normal(1 << 15, 7);
    for (block, published) in ENCODED {
        let error = nmse(&row, &round_trip(block, &row));
        println!("{block}: {error:.3e}, published {published:.1e}");
        assert!(error <= 1.1 * published, "{block}: {error:e} against {published:e}");
    }
}

#[test]
fn decoded_rows_encode_to_themselves() {
    let row = normal(1 << 12, 11);
    for block in [BlockType::F16, BlockType::BF16, BlockType::Q8_0, BlockType::Q4_0] {
        let once = round_trip(block, &row);
        assert_eq!(once, round_trip(block, &once), "{block}");
    }
    // Whole numbers within the codes' range are exact in the K formats too.
    let small: Vec<f32> = (0..256).map(|i| (i * 7 % 16) as f32).collect();
    assert_eq!(small, round_trip(BlockType::Q4_K, &small));
    let signed: Vec<f32> = (0..256).map(|i| (i * 7 % 64) as f32 - 32.0).collect();
    assert_eq!(signed, round_trip(BlockType::Q6_K, &signed));
}

#[test]
fn hostile_rows_encode_to_finite_values() {
    let mut rows = vec![vec![0.0; 256], vec![-0.0; 256], vec![1e-42; 256], vec![f32::MAX; 256]];
    rows.push(vec![f32::NAN; 256]);
    rows.push(vec![f32::NEG_INFINITY; 256]);
    rows.push((0..256).map(|i| if i % 3 == 0 { f32::NAN } else { i as f32 }).collect());
    rows.push((0..256).map(|i| if i == 5 { f32::MAX } else { f32::MIN_POSITIVE }).collect());
    rows.push((0..256).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }).collect());
    for (block, _) in ENCODED {
        for (i, row) in rows.iter().enumerate() {
            let back = round_trip(block, row);
            assert!(back.iter().all(|v| v.is_finite()), "{block}: row {i} is not finite");
            if i < 2 {
                assert!(back.iter().all(|v| *v == 0.0), "{block}: zeros became something");
            }
        }
    }
}
