// `d`, 16 bytes of codes: d * (q - 8). Blocks lie on 2-byte boundaries.
#define BLOCK_BYTES 18

void load_block(uint64_t block, out uvec4 codes, out uint fifth, out float factor, out float offset) {
    uint d;
    half_and_words(block, d, codes);
    fifth = 0;
    factor = half_value(d);
    offset = -8.0 * factor;
}

#include "blocks/nibbles.glsl"
