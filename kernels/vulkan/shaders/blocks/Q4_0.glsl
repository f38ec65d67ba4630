// `d`, 16 bytes of codes: d * (q - 8). Blocks lie on 2-byte boundaries.
#define BLOCK_BYTES 18
#define CODES 2
#define code_word word_of_halves

void load_head(uint64_t block, out uint fifth, out float factor, out float offset) {
    fifth = 0;
    factor = half_at(block);
    offset = -8.0 * factor;
}

#include "blocks/nibbles.glsl"
