// Words from addresses on any boundary, and the bytes of a word as numbers. A load takes the whole
// aligned words that hold what is asked for, and one more: up to seven bytes past its end.

// The word that begins `bits` (0..31) above the lowest bit of `low`.
uint straddling(uint low, uint high, uint bits) {
    return uint(packUint2x32(uvec2(low, high)) >> bits);
}

Words aligned_words(uint64_t address) { return Words(address & ~uint64_t(3)); }
uint misaligned_bits(uint64_t address) { return (uint(address) & 3) * 8; }

uint word_at(uint64_t address) {
    Words from = aligned_words(address);
    return straddling(from.at[0], from.at[1], misaligned_bits(address));
}

uvec2 two_words_at(uint64_t address) {
    Words from = aligned_words(address);
    uint bits = misaligned_bits(address), middle = from.at[1];
    return uvec2(straddling(from.at[0], middle, bits), straddling(middle, from.at[2], bits));
}

uvec4 words_at(uint64_t address) {
    Words from = aligned_words(address);
    uint bits = misaligned_bits(address);
    uint word[5];
    [[unroll]] for (int i = 0; i < 5; i++) word[i] = from.at[i];
    uvec4 result;
    [[unroll]] for (int i = 0; i < 4; i++) result[i] = straddling(word[i], word[i + 1], bits);
    return result;
}

uint aligned_word(uint64_t address) { return Words(address).at[0]; }

// The word on a 2-byte boundary.
uint word_of_halves(uint64_t address) {
    Halves from = Halves(address);
    return uint(from.at[0]) | uint(from.at[1]) << 16;
}

float half_at(uint64_t address) { return half_value(uint(Halves(address).at[0])); }
uint byte_at(uint64_t address) { return uint(Bytes(address).at[0]); }

vec4 bytes_of(uint word) { return vec4(uvec4(word, word >> 8, word >> 16, word >> 24) & 255); }

vec4 signed_bytes_of(uint word) {
    int bits = int(word);
    return vec4(bitfieldExtract(bits, 0, 8), bitfieldExtract(bits, 8, 8),
                bitfieldExtract(bits, 16, 8), bits >> 24);
}

// Bit i of the low four becomes the lowest bit of byte i.
uint spread_bits(uint four) { return ((four & 15) * 0x00204081) & 0x01010101; }
