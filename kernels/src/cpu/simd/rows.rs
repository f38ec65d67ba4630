//! Sixteen rows of stored blocks, read so that each lane of a vector belongs to one row.
//!
//! Functions here carry no instruction set of their own: they are inlined into callers that have
//! AVX-512, which is what makes their intrinsics single instructions.

use std::arch::x86_64::*;

/// An array of eight, the expression worked out for each index: closures would be functions of their
/// own without the caller's instruction set.
macro_rules! eight {
    ($i:ident => $value:expr) => {{
        [
            {
                let $i = 0;
                $value
            },
            {
                let $i = 1;
                $value
            },
            {
                let $i = 2;
                $value
            },
            {
                let $i = 3;
                $value
            },
            {
                let $i = 4;
                $value
            },
            {
                let $i = 5;
                $value
            },
            {
                let $i = 6;
                $value
            },
            {
                let $i = 7;
                $value
            },
        ]
    }};
}
pub(super) use eight;

/// Blocks at one place in sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    first: *const u8,
    /// Bytes from a row to the next.
    stride: usize,
}

impl Rows {
    /// The first blocks of the rows in `bytes`.
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { first: bytes.as_ptr(), stride: bytes.len() / 16 }
    }

    /// The blocks `bytes` further on.
    #[inline(always)]
    pub(super) fn skip(self, bytes: usize) -> Self {
        Self { first: self.first.wrapping_add(bytes), ..self }
    }

    /// Asks for the rows that follow these sixteen: `count` bytes of them from `at` on, if they were
    /// one stream.
    #[inline(always)]
    pub(super) fn ask_ahead(self, at: usize, count: usize) {
        for line in (0..count).step_by(64) {
            let place = self.first.wrapping_add(16 * self.stride + at + line);
            // SAFETY: a prefetch reads nothing as far as the program can tell, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) };
        }
    }

    /// Bytes `at..` of row `row`.
    #[inline(always)]
    fn place(self, row: usize, at: usize) -> *const u8 {
        self.first.wrapping_add(at + row * self.stride)
    }

    /// Sixteen bytes of rows `row`, `4 + row`, `8 + row`, `12 + row`.
    ///
    /// # Safety
    /// The processor has AVX-512; the bytes are inside every row.
    #[inline(always)]
    unsafe fn quarter(self, row: usize, at: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let a = _mm512_castsi128_si512(_mm_loadu_si128(self.place(row, at).cast()));
            let b = _mm_loadu_si128(self.place(4 + row, at).cast());
            let c = _mm_loadu_si128(self.place(8 + row, at).cast());
            let d = _mm_loadu_si128(self.place(12 + row, at).cast());
            let a = _mm512_inserti32x4::<1>(a, b);
            let a = _mm512_inserti32x4::<2>(a, c);
            _mm512_inserti32x4::<3>(a, d)
        }
    }

    /// Bytes `at..at + 16` of every row: vector `k` holds their word `k`, lane `r` that of row `r`.
    ///
    /// # Safety
    /// The processor has AVX-512; the bytes are inside every row.
    #[inline(always)]
    pub(super) unsafe fn words(self, at: usize) -> [__m512i; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (self.quarter(0, at), self.quarter(1, at));
            let (c, d) = (self.quarter(2, at), self.quarter(3, at));
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    /// Bytes `at..at + 32` of every row, as [`words`](Self::words).
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn eight_words(self, at: usize) -> [__m512i; 8] {
        // SAFETY: the caller's promise.
        let (a, b) = unsafe { (self.words(at), self.words(at + 16)) };
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
    }

    /// Four bytes of rows `row` to `row + 3`.
    ///
    /// # Safety
    /// As [`words`](Self::words).
    #[inline(always)]
    unsafe fn four(self, row: usize, at: usize) -> __m128i {
        // SAFETY: the caller's promise.
        unsafe {
            let a = _mm_cvtsi32_si128(self.place(row, at).cast::<i32>().read_unaligned());
            let b = self.place(row + 1, at).cast::<i32>().read_unaligned();
            let c = self.place(row + 2, at).cast::<i32>().read_unaligned();
            let d = self.place(row + 3, at).cast::<i32>().read_unaligned();
            _mm_insert_epi32::<3>(_mm_insert_epi32::<2>(_mm_insert_epi32::<1>(a, b), c), d)
        }
    }

    /// Bytes `at..at + 4` of every row.
    ///
    /// # Safety
    /// As [`words`](Self::words).
    #[inline(always)]
    pub(super) unsafe fn word(self, at: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm256_set_m128i(self.four(4, at), self.four(0, at));
            let high = _mm256_set_m128i(self.four(12, at), self.four(8, at));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
}

/// The half precision numbers in the low halves of words.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub(super) unsafe fn low_half(words: __m512i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)) }
}

/// The half precision numbers in the high halves of words.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub(super) unsafe fn high_half(words: __m512i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { low_half(_mm512_srli_epi32::<16>(words)) }
}

/// The byte repeated.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub(super) unsafe fn bytes(byte: u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_epi8(byte as i8) }
}

/// `count` bits of every byte, from bit `from` on.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub(super) unsafe fn bits(words: __m512i, from: u32, count: u32) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let shifted =
            if from == 0 { words } else { _mm512_srl_epi32(words, _mm_cvtsi32_si128(from as i32)) };
        _mm512_and_si512(shifted, bytes((1 << count) - 1))
    }
}

/// `a` with the bytes of `b` shifted up by `by` bits (which stay inside their bytes).
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub(super) unsafe fn above(a: __m512i, b: __m512i, by: u32) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_or_si512(a, _mm512_sll_epi32(b, _mm_cvtsi32_si128(by as i32))) }
}

/// Low halves of the bytes of four words, then the high halves: sixteen bytes of 4-bit codes in the
/// order of all simple formats.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub(super) unsafe fn low_high(w: [__m512i; 4]) -> [__m512i; 8] {
    // SAFETY: the caller's promise.
    unsafe { eight!(i => bits(w[i % 4], i as u32 / 4 * 4, 4)) }
}

/// Byte `index` of every word, as a signed number.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub(super) unsafe fn signed_byte(words: __m512i, index: u32) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let up = _mm512_sll_epi32(words, _mm_cvtsi32_si128(24 - 8 * index as i32));
        _mm512_srai_epi32::<24>(up)
    }
}
