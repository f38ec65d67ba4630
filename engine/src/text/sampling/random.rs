//! Counter-based random numbers: a pure function of seed, choice and position.

/// Multiplier that sets the choices of one request apart.
const CHOICE_STEP: u64 = 0xD134_2543_DE82_EF95;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014), with its increment.
const fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number of [0, 1) with 53 random bits, for the token at `position` (from 0, generated tokens
/// only) of choice number `choice`.
pub fn uniform(seed: i64, choice: u64, position: u64) -> f64 {
    let stream = seed.cast_unsigned().wrapping_add(choice.wrapping_mul(CHOICE_STEP));
    let bits = mix(mix(stream).wrapping_add(position)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::uniform;

    /// The values that the interface promises, bit for bit.
    #[test]
    fn published_values() {
        for ((seed, choice, position), expected) in [
            ((0, 0, 0), 0.6524484863740322),
            ((0, 0, 1), 0.1663964394676608),
            ((42, 0, 0), 0.34329192209867343),
            ((42, 1, 0), 0.9826646494836985),
            ((42, 0, 1000), 0.4575300288382993),
            ((-1, 0, 0), 0.3662420901697574),
        ] {
            assert_eq!(uniform(seed, choice, position), expected);
        }
    }
}
