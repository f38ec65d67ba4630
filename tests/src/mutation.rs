//! Damaged copies of files, the same on every run: a seed gives the damage.

/// The splitmix64 generator (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
/// 2014): small, and its sequence never changes with a crate's version.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator that starts from this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 for a bound of 0).
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next_u64() % bound as u64) as usize }
    }

    /// One of the items.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Numbers at the borders of what parsers compare and add.
const NUMBERS: &[u64] = &[
    0,
    1,
    4,
    31,
    255,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 40,
    (1 << 61) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

/// Pieces that mean something to JSON parsers.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "1e300",
    "0.5",
    "18446744073709551615",
    "99999999999999999999",
    "\\ud800",
    "\u{0}",
    "../",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":",
];

/// A copy of `original` with one to four damages.
pub fn damaged(original: &[u8], rng: &mut SplitMix64) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=rng.below(4) {
        damage(&mut bytes, rng);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, rng: &mut SplitMix64) {
    let at = rng.below(bytes.len());
    let room = bytes.len() - at;
    match rng.below(10) {
        0 if room > 0 => bytes[at] ^= 1 << rng.below(8),
        1 if room > 0 => bytes[at] = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b'"']),
        2 => put(bytes, at, &(*rng.pick(NUMBERS) as u32).to_le_bytes()),
        3 => put(bytes, at, &rng.pick(NUMBERS).to_le_bytes()),
        4 => {
            // A length or offset that is only just wrong.
            let near = (bytes.len() as u64).wrapping_add_signed(rng.below(17) as i64 - 8);
            put(bytes, at, &near.to_le_bytes());
        }
        5 => bytes.truncate(at),
        6 => {
            let length = 1 + rng.below(room.min(64));
            bytes.drain(at..(at + length).min(bytes.len()));
        }
        7 => {
            let from = rng.below(bytes.len());
            let copied = bytes[from..(from + 1 + rng.below(64)).min(bytes.len())].to_vec();
            bytes.splice(at..at, copied);
        }
        8 => {
            let piece = rng.pick(PIECES).as_bytes();
            bytes.splice(at..at, piece.iter().copied());
        }
        _ => {
            let piece = rng.pick(PIECES).as_bytes();
            put(bytes, at, piece);
        }
    }
}

/// Overwrites from `at` on, as far as there are bytes.
fn put(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (to, from) in bytes[at..].iter_mut().zip(with) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_the_paper() {
        // First outputs for seed 1234567, as the reference implementation gives them.
        let mut rng = SplitMix64::new(1_234_567);
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn damage_differs_by_seed_and_copes_with_nothing() {
        let original: Vec<u8> = (0..200).collect();
        let one = |seed| damaged(&original, &mut SplitMix64::new(seed));
        assert_eq!(one(5), one(5));
        assert!((0..50).filter(|&seed| one(seed) != original).count() > 45);
        for seed in 0..200 {
            damaged(&[], &mut SplitMix64::new(seed));
        }
    }
}
