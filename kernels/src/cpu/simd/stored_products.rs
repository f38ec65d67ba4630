//! What AVX-512 does with sixteen stored rows: products with a few rows of activations straight from
//! the blocks, and the taking apart into a tile for many rows.
//!
//! Both follow [`super::product`] number by number, so that results do not depend on which one ran.

use std::arch::x86_64::*;

use trefoil_graph::BlockType;

use super::super::linear::{IntegerForm, Panel, PanelSums, TileParts, integer_form};
use super::rows::Rows;
use super::stored::{
    IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Single, Super,
};

/// Most rows of activations for products straight from the blocks: beyond, taking the weights apart
/// once for all rows is faster.
pub(super) const FEW: usize = 4;

const LONG: usize = 256;
const SHORT: usize = 32;

/// Runs a function for the format: `$single` or `$super_block`, generic over it.
macro_rules! by_format {
    ($block:expr, $single:ident, $super_block:ident, ($($arg:expr),*)) => {
        match $block {
            BlockType::Q4_0 => $single::<Q4_0>($($arg),*),
            BlockType::Q4_1 => $single::<Q4_1>($($arg),*),
            BlockType::Q5_0 => $single::<Q5_0>($($arg),*),
            BlockType::Q5_1 => $single::<Q5_1>($($arg),*),
            BlockType::Q8_0 => $single::<Q8_0>($($arg),*),
            BlockType::IQ4_NL => $single::<IQ4NL>($($arg),*),
            BlockType::MXFP4 => $single::<MXFP4>($($arg),*),
            BlockType::Q2_K => $super_block::<Q2K>($($arg),*),
            BlockType::Q3_K => $super_block::<Q3K>($($arg),*),
            BlockType::Q4_K => $super_block::<Q4K>($($arg),*),
            BlockType::Q5_K => $super_block::<Q5K>($($arg),*),
            BlockType::Q6_K => $super_block::<Q6K>($($arg),*),
            BlockType::IQ4_XS => $super_block::<IQ4XS>($($arg),*),
            block => unreachable!("{block} is not read by vector code"),
        }
    };
}

/// Is there code here for the format?
pub(super) fn reads(block: BlockType) -> bool {
    use BlockType::*;
    matches!(
        block,
        Q4_0 | Q4_1
            | Q5_0
            | Q5_1
            | Q8_0
            | IQ4_NL
            | MXFP4
            | Q2_K
            | Q3_K
            | Q4_K
            | Q5_K
            | Q6_K
            | IQ4_XS
    )
}

/// Products of sixteen stored rows with the panel, as [`super::product::tile`].
///
/// # Safety
/// The processor has AVX-512; [`reads`] the format; `bytes` is sixteen rows of the panel's columns;
/// the panel has 1 to [`FEW`] rows and is long enough for them, `sums` are of the format's form, and
/// `out` is `[rows][16]`.
pub(super) unsafe fn few(
    block: BlockType,
    bytes: &[u8],
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &mut [f32],
) {
    macro_rules! by_rows {
        ($($m:literal $single:ident $super_block:ident)*) => {$(
            #[target_feature(
                enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
            )]
            unsafe fn $single<B: Single>(b: &[u8], p: &Panel<'_>, s: &PanelSums<'_>, o: &mut [f32])
            {
                // SAFETY: the caller's promise.
                unsafe { few_single::<B, $m>(b, p, s, o) }
            }
            #[target_feature(
                enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
            )]
            unsafe fn $super_block<B: Super>(
                b: &[u8],
                p: &Panel<'_>,
                s: &PanelSums<'_>,
                o: &mut [f32],
            ) {
                // SAFETY: the caller's promise.
                unsafe { few_super::<B, $m>(b, p, s, o) }
            }
        )*
            // SAFETY: the caller's promise.
            unsafe {
                match panel.rows {
                    $($m => by_format!(block, $single, $super_block, (bytes, panel, sums, out)),)*
                    m => unreachable!("{m} rows are not few"),
                }
            }
        };
    }
    by_rows! { 1 single_1 super_1 2 single_2 super_2 3 single_3 super_3 4 single_4 super_4 }
}

/// `codes` times columns of the panel from `column` on, added to `products`.
#[inline(always)]
unsafe fn multiply<const M: usize, const N: usize>(
    codes: &[__m512i],
    x: *const i8,
    column: usize,
    products: &mut [__m512i; M],
) {
    for (i, codes) in codes.iter().enumerate().take(N) {
        for (m, product) in products.iter_mut().enumerate() {
            // SAFETY: `[columns / 4][M][4]` codes of the panel.
            unsafe {
                let four = x.add(((column / 4 + i) * M + m) * 4).cast::<i32>().read_unaligned();
                *product = _mm512_dpbusd_epi32(*product, *codes, _mm512_set1_epi32(four));
            }
        }
    }
}

/// What products of group `group` start from.
#[inline(always)]
unsafe fn start<const M: usize>(
    form: IntegerForm,
    sums: &PanelSums<'_>,
    group: usize,
) -> [__m512i; M] {
    // SAFETY: `[columns / group][M]` sums, where the form has no minimum.
    unsafe {
        let mut start = [_mm512_setzero_si512(); M];
        if !form.minimum {
            for (m, start) in start.iter_mut().enumerate() {
                *start = _mm512_set1_epi32(*sums.groups.as_ptr().add(group * M + m));
            }
        }
        start
    }
}

/// `whole += factor * products`.
#[inline(always)]
unsafe fn scale_add<const M: usize>(
    products: &[__m512i; M],
    factor: __m512i,
    whole: &mut [__m512i; M],
) {
    for m in 0..M {
        // SAFETY: the processor has AVX-512.
        unsafe {
            whole[m] = _mm512_add_epi32(whole[m], _mm512_mullo_epi32(products[m], factor));
        }
    }
}

#[inline(always)]
unsafe fn few_single<B: Single, const M: usize>(
    bytes: &[u8],
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &mut [f32],
) {
    let form = const { form_of(B::BLOCK) };
    let size = B::BLOCK.info().bytes;
    let all = Rows::new(bytes);
    let blocks = bytes.len() / 16 / size;
    // SAFETY: the caller's promise: every index below is inside the arrays that it describes.
    unsafe {
        let mut total = [_mm512_setzero_ps(); M];
        for span in 0..blocks {
            let rows = all.skip(span * size);
            all.ask_ahead(span * 16 * size, 16 * size);
            let codes = B::codes(rows);
            let (scale, min) = B::scales(rows);
            let mut products = start::<M>(form, sums, span);
            multiply::<M, 8>(&codes, panel.codes.as_ptr(), span * SHORT, &mut products);
            for m in 0..M {
                let x_scale = _mm512_set1_ps(*panel.scales.as_ptr().add(span * M + m));
                let product = _mm512_cvtepi32_ps(products[m]);
                total[m] = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, x_scale), total[m]);
                if form.minimum {
                    let shift = _mm512_set1_ps(*sums.shifts.as_ptr().add(span * M + m));
                    total[m] = _mm512_fmadd_ps(min, shift, total[m]);
                }
            }
        }
        for (m, total) in total.into_iter().enumerate() {
            _mm512_storeu_ps(out.as_mut_ptr().add(m * 16), total);
        }
    }
}

#[inline(always)]
unsafe fn few_super<B: Super, const M: usize>(
    bytes: &[u8],
    panel: &Panel<'_>,
    sums: &PanelSums<'_>,
    out: &mut [f32],
) {
    let form = const { form_of(B::BLOCK) };
    let size = B::BLOCK.info().bytes;
    let groups = LONG / form.group;
    let x = panel.codes.as_ptr();
    let all = Rows::new(bytes);
    let blocks = bytes.len() / 16 / size;
    // SAFETY: the caller's promise: every index below is inside the arrays that it describes.
    unsafe {
        let mut total = [_mm512_setzero_ps(); M];
        for span in 0..blocks {
            let rows = all.skip(span * size);
            let head = B::head(rows);
            let mut whole = [_mm512_setzero_si512(); M];
            for pair in 0..4 {
                all.ask_ahead((span * 4 + pair) * 4 * size, 4 * size);
                let spans = B::spans(pair);
                let codes = B::pair(rows, &head, pair);
                for half in 0..2 {
                    let (codes, n) = (&codes[half], spans[half]);
                    let column = span * LONG + n * SHORT;
                    if form.group == 32 {
                        let mut products = start::<M>(form, sums, span * groups + n);
                        multiply::<M, 8>(codes, x, column, &mut products);
                        scale_add(&products, B::factor(&head, n), &mut whole);
                    } else {
                        let group = span * groups + 2 * n;
                        let mut products = start::<M>(form, sums, group);
                        multiply::<M, 4>(&codes[..4], x, column, &mut products);
                        scale_add(&products, B::factor(&head, 2 * n), &mut whole);
                        let mut products = start::<M>(form, sums, group + 1);
                        multiply::<M, 4>(&codes[4..], x, column + 16, &mut products);
                        scale_add(&products, B::factor(&head, 2 * n + 1), &mut whole);
                    }
                }
            }
            let (scale, min) = B::scales(&head);
            let mut below = [_mm512_setzero_si512(); M];
            if form.minimum {
                for i in 0..groups / 2 {
                    let factors = B::min_factors(&head, i);
                    for (m, below) in below.iter_mut().enumerate() {
                        let at = (span * groups / 2 + i) * M + m;
                        let sum = _mm512_set1_epi32(*sums.groups.as_ptr().add(at));
                        *below = _mm512_dpwssd_epi32(*below, factors, sum);
                    }
                }
            }
            for m in 0..M {
                let x_scale = _mm512_set1_ps(*panel.scales.as_ptr().add(span * M + m));
                let product = _mm512_cvtepi32_ps(whole[m]);
                total[m] = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, x_scale), total[m]);
                if form.minimum {
                    let product = _mm512_cvtepi32_ps(below[m]);
                    total[m] = _mm512_fnmadd_ps(product, _mm512_mul_ps(min, x_scale), total[m]);
                }
            }
        }
        for (m, total) in total.into_iter().enumerate() {
            _mm512_storeu_ps(out.as_mut_ptr().add(m * 16), total);
        }
    }
}

const fn form_of(block: BlockType) -> IntegerForm {
    match integer_form(block) {
        Some(form) => form,
        None => panic!("a quantised format"),
    }
}

/// Takes sixteen stored rows apart into a tile.
///
/// # Safety
/// The processor has AVX-512; [`reads`] the format; `bytes` is sixteen rows, and the parts are of
/// their size.
pub(super) unsafe fn unpack(block: BlockType, bytes: &[u8], parts: &mut TileParts<'_>) {
    // SAFETY: the caller's promise.
    unsafe { by_format!(block, unpack_single, unpack_super, (bytes, parts)) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn unpack_single<B: Single>(bytes: &[u8], parts: &mut TileParts<'_>) {
    let size = B::BLOCK.info().bytes;
    let all = Rows::new(bytes);
    // SAFETY: the caller's promise.
    unsafe {
        for span in 0..bytes.len() / 16 / size {
            let rows = all.skip(span * size);
            all.ask_ahead(span * 16 * size, 16 * size);
            let codes = parts.codes.as_mut_ptr().add(span * 16 * SHORT);
            for (i, word) in B::codes(rows).into_iter().enumerate() {
                _mm512_storeu_si512(codes.add(i * 64).cast(), word);
            }
            let (scale, min) = B::scales(rows);
            _mm512_storeu_ps(parts.scales.as_mut_ptr().add(span * 16), scale);
            if const { form_of(B::BLOCK) }.minimum {
                _mm512_storeu_ps(parts.mins.as_mut_ptr().add(span * 16), min);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn unpack_super<B: Super>(bytes: &[u8], parts: &mut TileParts<'_>) {
    let form = const { form_of(B::BLOCK) };
    let size = B::BLOCK.info().bytes;
    let groups = LONG / form.group;
    let all = Rows::new(bytes);
    // SAFETY: the caller's promise.
    unsafe {
        for span in 0..bytes.len() / 16 / size {
            let rows = all.skip(span * size);
            let head = B::head(rows);
            let codes = parts.codes.as_mut_ptr().add(span * 16 * LONG);
            for pair in 0..4 {
                all.ask_ahead((span * 4 + pair) * 4 * size, 4 * size);
                for (words, n) in B::pair(rows, &head, pair).into_iter().zip(B::spans(pair)) {
                    for (i, word) in words.into_iter().enumerate() {
                        _mm512_storeu_si512(codes.add((n * 8 + i) * 64).cast(), word);
                    }
                }
            }
            for group in 0..groups {
                let to = parts.factors.as_mut_ptr().add((span * groups + group) * 16);
                _mm512_storeu_si512(to.cast(), B::factor(&head, group));
            }
            let (scale, min) = B::scales(&head);
            _mm512_storeu_ps(parts.scales.as_mut_ptr().add(span * 16), scale);
            if form.minimum {
                _mm512_storeu_ps(parts.mins.as_mut_ptr().add(span * 16), min);
                for i in 0..groups / 2 {
                    let at = (span * groups / 2 + i) * 16;
                    let to = parts.min_factors.as_mut_ptr().add(at);
                    _mm512_storeu_si512(to.cast(), B::min_factors(&head, i));
                }
            }
        }
    }
}
