//! Keys and values in pages.
//!
//! A layer's pages lie in one slab of bytes, `page_stride` apart. A page holds the keys of all KV
//! heads, then the values: each `[kv_heads][page_tokens][head_dim]` numbers of the format.

use super::pool::SharedSlice;
use super::{ThreadPool, simd};

/// Number format of stored keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// Four bytes a number.
    F32,
    /// Half precision, two bytes a number.
    F16,
}

impl KvFormat {
    /// Bytes of `elements` numbers.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Self::F32 => 4 * elements,
            Self::F16 => 2 * elements,
        }
    }
}

/// How a layer's pages are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Number format.
    pub format: KvFormat,
    /// KV heads of the layer.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Tokens per page, a power of two.
    pub page_tokens: usize,
    /// Bytes from one page of the layer to the next, at least [`page_bytes`](Self::page_bytes).
    pub page_stride: usize,
}

impl KvLayout {
    /// A layout whose pages lie next to each other.
    pub fn packed(format: KvFormat, kv_heads: usize, head_dim: usize, page_tokens: usize) -> Self {
        let mut layout = Self { format, kv_heads, head_dim, page_tokens, page_stride: 0 };
        layout.page_stride = layout.page_bytes();
        layout
    }

    /// Bytes of one token's numbers in one head.
    pub fn row_bytes(&self) -> usize {
        self.format.bytes(self.head_dim)
    }

    /// Bytes of a page of this layer, keys and values.
    pub fn page_bytes(&self) -> usize {
        2 * self.plane_bytes()
    }

    fn plane_bytes(&self) -> usize {
        self.kv_heads * self.page_tokens * self.row_bytes()
    }

    /// Offset in the slab of the key of `token` of `page` in `head`.
    pub(super) fn key_at(&self, page: u32, head: usize, token: usize) -> usize {
        page as usize * self.page_stride + (head * self.page_tokens + token) * self.row_bytes()
    }

    /// Offset in the slab of the value of `token` of `page` in `head`.
    pub(super) fn value_at(&self, page: u32, head: usize, token: usize) -> usize {
        self.key_at(page, head, token) + self.plane_bytes()
    }
}

/// Where a row's key and value go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSlot {
    /// Page of the layer's slab.
    pub page: u32,
    /// Token within the page.
    pub token: u32,
}

/// Stores keys and values (`[rows, kv_heads * head_dim]` each), rounded to the slab's format, at one
/// slot a row. No two rows share a slot.
///
/// # Panics
/// If the lengths do not fit or a slot leaves the slab.
pub fn kv_write(
    pool: &ThreadPool,
    layout: &KvLayout,
    keys: &[f32],
    values: &[f32],
    slots: &[KvSlot],
    pages: &mut [u8],
) {
    let (dim, bytes) = (layout.head_dim, layout.row_bytes());
    let width = layout.kv_heads * dim;
    assert_eq!((keys.len(), values.len()), (slots.len() * width, slots.len() * width));
    assert!(slots.iter().all(|slot| (slot.token as usize) < layout.page_tokens), "kv_write: slot");
    let shared = SharedSlice::new(pages);
    let head_task = |head: usize, _: usize| {
        for (i, slot) in slots.iter().enumerate() {
            let from = i * width + head * dim..i * width + (head + 1) * dim;
            let token = slot.token as usize;
            for (numbers, at) in [
                (&keys[from.clone()], layout.key_at(slot.page, head, token)),
                (&values[from], layout.value_at(slot.page, head, token)),
            ] {
                // SAFETY: a task writes only inside its own head's part of each page.
                let target = unsafe { shared.part(at..at + bytes) };
                simd::narrow(pool.level(), layout.format, numbers, target);
            }
        }
    };
    // A few rows are done before another thread would have begun.
    if slots.len() < 16 {
        (0..layout.kv_heads).for_each(|head| head_task(head, 0));
    } else {
        pool.run(layout.kv_heads, head_task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_numbers_come_back_from_their_slots() {
        let pool = ThreadPool::new(2).expect("threads start");
        for (format, stride) in [(KvFormat::F32, 0), (KvFormat::F16, 96)] {
            let mut layout = KvLayout::packed(format, 3, 20, 4);
            layout.page_stride += stride;
            let mut pages = vec![0xff; 10 * layout.page_stride];
            let slots: Vec<KvSlot> =
                (0..33).map(|i| KvSlot { page: 9 - i / 4, token: i % 4 }).collect();
            let number = |i: usize| (i % 1000) as f32 * 0.25 - 100.0;
            let keys: Vec<f32> = (0..33 * 60).map(number).collect();
            let values: Vec<f32> = keys.iter().map(|k| -k).collect();
            kv_write(&pool, &layout, &keys, &values, &slots, &mut pages);
            let mut back = vec![0.0; 20];
            for (i, slot) in slots.iter().enumerate() {
                for head in 0..3 {
                    let from = &keys[i * 60 + head * 20..][..20];
                    let at = layout.key_at(slot.page, head, slot.token as usize);
                    simd::widen(
                        pool.level(),
                        format,
                        &pages[at..at + layout.row_bytes()],
                        &mut back,
                    );
                    assert_eq!(from, back);
                    let at = layout.value_at(slot.page, head, slot.token as usize);
                    simd::widen(
                        pool.level(),
                        format,
                        &pages[at..at + layout.row_bytes()],
                        &mut back,
                    );
                    assert!(from.iter().zip(&back).all(|(k, v)| *v == -k));
                }
            }
        }
    }
}
