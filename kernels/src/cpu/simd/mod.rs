//! Vector code: number conversion, transposition, integer products. Each function exists in plain
//! code, which defines it, and where it pays for AVX2 and AVX-512.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_tile;
mod convert;
#[cfg(target_arch = "x86_64")]
mod floats;
pub(super) mod product;
#[cfg(target_arch = "x86_64")]
mod rows;
#[cfg(target_arch = "x86_64")]
mod stored;
#[cfg(target_arch = "x86_64")]
mod stored_products;

pub(super) use convert::{narrow, transpose, widen, widen_bf16};
#[cfg(target_arch = "x86_64")]
pub(super) use floats::{Bf16, F16, F32, products};
