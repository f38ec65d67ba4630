// `d`, a word of fifth bits, 16 bytes of codes: d * (q - 16). Blocks lie on 2-byte boundaries.
#define BLOCK_BYTES 22
#define FIFTH_BITS
#define CODES 6
#define code_word word_of_halves

void load_head(uint64_t block, out uint fifth, out float factor, out float offset) {
    fifth = word_of_halves(block + 2);
    factor = half_at(block);
    offset = -16.0 * factor;
}

#include "blocks/nibbles.glsl"
