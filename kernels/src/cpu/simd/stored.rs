//! Stored formats as AVX-512 reads them, sixteen rows at a time: the same codes and scales that
//! [`super::super::linear`]'s plain functions give, one lane a row.

use std::arch::x86_64::*;

use trefoil_graph::BlockType;

use super::rows::{Rows, above, bits, bytes, eight, high_half, low_half, low_high, signed_byte};
use crate::blocks::{E2M1_DOUBLED, IQ4_VALUES};

/// A format of 32 weights with scales of their own.
pub(super) trait Single {
    const BLOCK: BlockType;

    /// Codes plus offset: eight words of four.
    ///
    /// # Safety
    /// The processor has AVX-512; `rows` is at whole blocks.
    unsafe fn codes(rows: Rows) -> [__m512i; 8];

    /// Scale and minimum (0 in formats without).
    ///
    /// # Safety
    /// As above.
    unsafe fn scales(rows: Rows) -> (__m512, __m512);
}

/// A format of 256 weights with a scale and whole factors.
pub(super) trait Super {
    const BLOCK: BlockType;

    /// What is taken apart once a block.
    type Head: Copy;

    /// # Safety
    /// The processor has AVX-512; `rows` is at whole blocks.
    unsafe fn head(rows: Rows) -> Self::Head;

    /// Scale and scale of the minimums (0 in formats without).
    ///
    /// # Safety
    /// The processor has AVX-512.
    unsafe fn scales(head: &Self::Head) -> (__m512, __m512);

    /// Codes plus offset of the two spans of 32 columns that [`spans`](Self::spans) names.
    ///
    /// # Safety
    /// As [`head`](Self::head).
    unsafe fn pair(rows: Rows, head: &Self::Head, pair: usize) -> [[__m512i; 8]; 2];

    /// Which spans of 32 columns are in pair 0 to 3.
    #[inline(always)]
    fn spans(pair: usize) -> [usize; 2] {
        [2 * pair, 2 * pair + 1]
    }

    /// The factor of group `index`.
    ///
    /// # Safety
    /// The processor has AVX-512.
    unsafe fn factor(head: &Self::Head, index: usize) -> __m512i;

    /// The minimums' factors of groups `2 * index` (low half of a lane) and `2 * index + 1`.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn min_factors(_: &Self::Head, _: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { _mm512_setzero_si512() }
    }
}

/// Sixteen values, one for each 4-bit code, in every 128-bit part.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn looked_up(codes: [__m512i; 8], table: &[i8; 16], offset: u8) -> [__m512i; 8] {
    // SAFETY: the caller's promise; the table has 16 bytes.
    unsafe {
        let values = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        let values = _mm512_add_epi8(values, bytes(offset));
        eight!(i => _mm512_shuffle_epi8(values, codes[i]))
    }
}

/// Adds bit `4 * i + j` of each lane of `fifth` to byte `j` of word `i`, as its fifth bit.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn with_fifth(codes: [__m512i; 8], fifth: __m512i) -> [__m512i; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let spread = _mm512_loadu_si512(SPREAD.as_ptr().cast());
        eight!(i => {
            let four = _mm512_srl_epi32(fifth, _mm_cvtsi32_si128(4 * i as i32));
            // Only the low four bits of an index count.
            _mm512_or_si512(codes[i], _mm512_permutexvar_epi32(four, spread))
        })
    }
}

/// Entry `n`: bit `j` of `n` at bit 4 of byte `j`.
const SPREAD: [i32; 16] = {
    let mut table = [0; 16];
    let mut n = 0;
    while n < 16 {
        table[n as usize] =
            (n & 1) << 4 | (n >> 1 & 1) << 12 | (n >> 2 & 1) << 20 | (n >> 3 & 1) << 28;
        n += 1;
    }
    table
};

/// Implements [`Single`]: name, format, codes, then scale and minimum.
macro_rules! single {
    ($($name:ident $block:ident: |$rows:ident| $codes:expr, $scales:expr;)*) => {$(
        pub(super) struct $name;
        impl Single for $name {
            const BLOCK: BlockType = BlockType::$block;
            #[inline(always)]
            unsafe fn codes($rows: Rows) -> [__m512i; 8] {
                // SAFETY: the caller's promise.
                unsafe { $codes }
            }
            #[inline(always)]
            unsafe fn scales($rows: Rows) -> (__m512, __m512) {
                // SAFETY: the caller's promise.
                unsafe { $scales }
            }
        }
    )*};
}

/// The half at the beginning; no minimum.
#[inline(always)]
unsafe fn first_half(rows: Rows) -> (__m512, __m512) {
    // SAFETY: the caller's promise.
    unsafe { (low_half(rows.word(0)), _mm512_setzero_ps()) }
}

/// Two halves at the beginning.
#[inline(always)]
unsafe fn two_halves(rows: Rows) -> (__m512, __m512) {
    // SAFETY: the caller's promise.
    unsafe {
        let both = rows.word(0);
        (low_half(both), high_half(both))
    }
}

/// See [`crate::blocks::half_e8m0`].
#[inline(always)]
unsafe fn half_powers(exponents: __m512i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let one = _mm512_set1_epi32(1);
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, one));
        let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x20_0000), exponents);
        let is_small = _mm512_cmple_epu32_mask(exponents, one);
        _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_small, small))
    }
}

single! {
    Q4_0 Q4_0: |rows| low_high(rows.words(2)), first_half(rows);
    Q4_1 Q4_1: |rows| low_high(rows.words(4)), two_halves(rows);
    Q5_0 Q5_0: |rows| with_fifth(low_high(rows.words(6)), rows.word(2)), first_half(rows);
    Q5_1 Q5_1: |rows| with_fifth(low_high(rows.words(8)), rows.word(4)), two_halves(rows);
    Q8_0 Q8_0: |rows| {
        let w = rows.eight_words(2);
        eight!(i => _mm512_xor_si512(w[i], bytes(0x80)))
    }, first_half(rows);
    IQ4NL IQ4_NL: |rows| looked_up(low_high(rows.words(2)), &IQ4_VALUES, 128), first_half(rows);
    MXFP4 MXFP4: |rows| looked_up(low_high(rows.words(1)), &E2M1_DOUBLED, 16), {
        let exponents = _mm512_and_si512(rows.word(0), _mm512_set1_epi32(255));
        (half_powers(exponents), _mm512_setzero_ps())
    };
}

/// Head of Q4_K and Q5_K: words of scale and minimum, and of both kinds of factors.
#[derive(Clone, Copy)]
pub(super) struct Sixes {
    both: __m512i,
    /// Factors 0 to 3, 4 to 7, one a byte.
    scales: [__m512i; 2],
    mins: [__m512i; 2],
}

impl Sixes {
    /// See [`crate::blocks::scales_and_mins`].
    #[inline(always)]
    unsafe fn new(rows: Rows) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let [both, s, m, rest] = rows.words(0);
            Self {
                both,
                scales: [bits(s, 0, 6), above(bits(rest, 0, 4), bits(s, 6, 2), 4)],
                mins: [bits(m, 0, 6), above(bits(rest, 4, 4), bits(m, 6, 2), 4)],
            }
        }
    }

    #[inline(always)]
    unsafe fn scales(&self) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        unsafe { (low_half(self.both), high_half(self.both)) }
    }

    #[inline(always)]
    unsafe fn factor(&self, index: usize) -> __m512i {
        // SAFETY: the caller's promise; factors have no sign bit.
        unsafe { signed_byte(self.scales[index / 4], index as u32 % 4) }
    }

    #[inline(always)]
    unsafe fn min_factors(&self, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { two_bytes(self.mins[index / 2], index % 2) }
    }
}

/// Bytes `2 * index` and `2 * index + 1` of every word, as two halves of 16 bits.
#[inline(always)]
unsafe fn two_bytes(words: __m512i, index: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let two = _mm512_srl_epi32(words, _mm_cvtsi32_si128(16 * index as i32));
        let low = _mm512_and_si512(two, _mm512_set1_epi32(0xff));
        let high = _mm512_and_si512(two, _mm512_set1_epi32(0xff00));
        _mm512_or_si512(low, _mm512_slli_epi32::<8>(high))
    }
}

pub(super) struct Q4K;

impl Super for Q4K {
    const BLOCK: BlockType = BlockType::Q4_K;
    type Head = Sixes;

    #[inline(always)]
    unsafe fn head(rows: Rows) -> Sixes {
        // SAFETY: the caller's promise.
        unsafe { Sixes::new(rows) }
    }

    #[inline(always)]
    unsafe fn scales(head: &Sixes) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        unsafe { head.scales() }
    }

    #[inline(always)]
    unsafe fn pair(rows: Rows, _: &Sixes, pair: usize) -> [[__m512i; 8]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let w = rows.eight_words(16 + 32 * pair);
            [eight!(i => bits(w[i], 0, 4)), eight!(i => bits(w[i], 4, 4))]
        }
    }

    #[inline(always)]
    unsafe fn factor(head: &Sixes, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { head.factor(index) }
    }

    #[inline(always)]
    unsafe fn min_factors(head: &Sixes, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { head.min_factors(index) }
    }
}

pub(super) struct Q5K;

impl Super for Q5K {
    const BLOCK: BlockType = BlockType::Q5_K;
    type Head = (Sixes, [__m512i; 8]);

    #[inline(always)]
    unsafe fn head(rows: Rows) -> Self::Head {
        // SAFETY: the caller's promise.
        unsafe { (Sixes::new(rows), rows.eight_words(16)) }
    }

    #[inline(always)]
    unsafe fn scales(head: &Self::Head) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        unsafe { head.0.scales() }
    }

    #[inline(always)]
    unsafe fn pair(rows: Rows, head: &Self::Head, pair: usize) -> [[__m512i; 8]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let w = rows.eight_words(48 + 32 * pair);
            let (high, first) = (&head.1, 2 * pair as u32);
            [
                eight!(i => above(bits(w[i], 0, 4), bits(high[i], first, 1), 4)),
                eight!(i => above(bits(w[i], 4, 4), bits(high[i], first + 1, 1), 4)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn factor(head: &Self::Head, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { head.0.factor(index) }
    }

    #[inline(always)]
    unsafe fn min_factors(head: &Self::Head, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { head.0.min_factors(index) }
    }
}

/// Sixteen bytes of signed factors, and a scale.
#[derive(Clone, Copy)]
pub(super) struct SignedHead<Rest> {
    scale: __m512,
    factors: [__m512i; 4],
    rest: Rest,
}

impl<Rest> SignedHead<Rest> {
    #[inline(always)]
    unsafe fn factor(&self, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { signed_byte(self.factors[index / 4], index as u32 % 4) }
    }
}

pub(super) struct Q6K;

impl Super for Q6K {
    const BLOCK: BlockType = BlockType::Q6_K;
    /// The rest: words of high bits, 64 bytes.
    type Head = SignedHead<[[__m512i; 8]; 2]>;

    #[inline(always)]
    unsafe fn head(rows: Rows) -> Self::Head {
        // SAFETY: the caller's promise.
        unsafe {
            SignedHead {
                scale: high_half(rows.word(206)),
                factors: rows.words(192),
                rest: [rows.eight_words(128), rows.eight_words(160)],
            }
        }
    }

    #[inline(always)]
    unsafe fn scales(head: &Self::Head) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        (head.scale, unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn pair(rows: Rows, head: &Self::Head, pair: usize) -> [[__m512i; 8]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let w = rows.eight_words(32 * pair);
            let (half, n) = (pair / 2, pair as u32 % 2);
            let high = &head.rest[half];
            [
                eight!(i => above(bits(w[i], 0, 4), bits(high[i], 2 * n, 2), 4)),
                eight!(i => above(bits(w[i], 4, 4), bits(high[i], 2 * n + 4, 2), 4)),
            ]
        }
    }

    #[inline(always)]
    fn spans(pair: usize) -> [usize; 2] {
        let first = pair / 2 * 4 + pair % 2;
        [first, first + 2]
    }

    #[inline(always)]
    unsafe fn factor(head: &Self::Head, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { head.factor(index) }
    }
}

pub(super) struct Q2K;

impl Super for Q2K {
    const BLOCK: BlockType = BlockType::Q2_K;
    /// Scale and minimum; factors of both kinds; codes.
    type Head = (__m512i, [__m512i; 4], [[__m512i; 8]; 2]);

    #[inline(always)]
    unsafe fn head(rows: Rows) -> Self::Head {
        // SAFETY: the caller's promise.
        unsafe { (rows.word(80), rows.words(0), [rows.eight_words(16), rows.eight_words(48)]) }
    }

    #[inline(always)]
    unsafe fn scales(head: &Self::Head) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        unsafe { (low_half(head.0), high_half(head.0)) }
    }

    #[inline(always)]
    unsafe fn pair(_: Rows, head: &Self::Head, pair: usize) -> [[__m512i; 8]; 2] {
        // SAFETY: the caller's promise.
        unsafe { two_bits(&head.2, pair) }
    }

    #[inline(always)]
    unsafe fn factor(head: &Self::Head, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { signed_byte(bits(head.1[index / 4], 0, 4), index as u32 % 4) }
    }

    #[inline(always)]
    unsafe fn min_factors(head: &Self::Head, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { two_bytes(bits(head.1[index / 2], 4, 4), index % 2) }
    }
}

/// Two-bit codes of Q2_K, Q3_K, TQ2_0: byte `j` of each 32 holds `j`, `j + 32`, `j + 64`, `j + 96`.
#[inline(always)]
unsafe fn two_bits(words: &[[__m512i; 8]; 2], pair: usize) -> [[__m512i; 8]; 2] {
    let first = pair as u32 % 2 * 4;
    let w = words[pair / 2];
    // SAFETY: the caller's promise.
    unsafe { [eight!(i => bits(w[i], first, 2)), eight!(i => bits(w[i], first + 2, 2))] }
}

pub(super) struct Q3K;

impl Super for Q3K {
    const BLOCK: BlockType = BlockType::Q3_K;
    /// The rest: words of third bits, words of codes.
    type Head = SignedHead<([__m512i; 8], [[__m512i; 8]; 2])>;

    #[inline(always)]
    unsafe fn head(rows: Rows) -> Self::Head {
        // SAFETY: the caller's promise.
        unsafe {
            // See `crate::blocks::signed_scales`; the last word of these sixteen bytes ends in `d`.
            let [_, a, b, top] = rows.words(92);
            SignedHead {
                scale: high_half(rows.word(106)),
                factors: [
                    _mm512_sub_epi8(above(bits(a, 0, 4), bits(top, 0, 2), 4), bytes(32)),
                    _mm512_sub_epi8(above(bits(b, 0, 4), bits(top, 2, 2), 4), bytes(32)),
                    _mm512_sub_epi8(above(bits(a, 4, 4), bits(top, 4, 2), 4), bytes(32)),
                    _mm512_sub_epi8(above(bits(b, 4, 4), bits(top, 6, 2), 4), bytes(32)),
                ],
                rest: (rows.eight_words(0), [rows.eight_words(32), rows.eight_words(64)]),
            }
        }
    }

    #[inline(always)]
    unsafe fn scales(head: &Self::Head) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        (head.scale, unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn pair(_: Rows, head: &Self::Head, pair: usize) -> [[__m512i; 8]; 2] {
        let (third, codes) = &head.rest;
        // SAFETY: the caller's promise.
        unsafe {
            let [a, b] = two_bits(codes, pair);
            let first = 2 * pair as u32;
            [
                eight!(i => above(a[i], bits(third[i], first, 1), 2)),
                eight!(i => above(b[i], bits(third[i], first + 1, 1), 2)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn factor(head: &Self::Head, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { head.factor(index) }
    }
}

/// Factors `first` to `first + 3` of IQ4_XS, a byte each: four bits of `low` and two of `high`, less
/// 32.
#[inline(always)]
unsafe fn iq4_factors(low: __m512i, high: __m512i, first: i32) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let mut all = _mm512_setzero_si512();
        for n in 0..4 {
            let four = _mm512_srl_epi32(low, _mm_cvtsi32_si128(4 * (first + n)));
            let two = _mm512_srl_epi32(high, _mm_cvtsi32_si128(2 * (first + n)));
            let four = _mm512_and_si512(four, _mm512_set1_epi32(15));
            let two = _mm512_and_si512(two, _mm512_set1_epi32(3));
            let six = _mm512_or_si512(four, _mm512_slli_epi32::<4>(two));
            all = _mm512_or_si512(all, _mm512_sll_epi32(six, _mm_cvtsi32_si128(8 * n)));
        }
        _mm512_sub_epi8(all, bytes(32))
    }
}

pub(super) struct IQ4XS;

impl Super for IQ4XS {
    const BLOCK: BlockType = BlockType::IQ4_XS;
    /// Eight factors.
    type Head = SignedHead<()>;

    #[inline(always)]
    unsafe fn head(rows: Rows) -> Self::Head {
        // SAFETY: the caller's promise.
        unsafe {
            let (both, low) = (rows.word(0), rows.word(4));
            let high = _mm512_srli_epi32::<16>(both);
            let (a, b) = (iq4_factors(low, high, 0), iq4_factors(low, high, 4));
            SignedHead { scale: low_half(both), factors: [a, b, a, b], rest: () }
        }
    }

    #[inline(always)]
    unsafe fn scales(head: &Self::Head) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        (head.scale, unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn pair(rows: Rows, _: &Self::Head, pair: usize) -> [[__m512i; 8]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let first = low_high(rows.words(8 + 32 * pair));
            let second = low_high(rows.words(24 + 32 * pair));
            [looked_up(first, &IQ4_VALUES, 128), looked_up(second, &IQ4_VALUES, 128)]
        }
    }

    #[inline(always)]
    unsafe fn factor(head: &Self::Head, index: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { head.factor(index) }
    }
}
