// `d`, 16 bytes of codes of uneven values: byte j holds elements j and j + 16. Blocks lie on 2-byte
// boundaries.
#define BLOCK_ELEMENTS 32
#define BLOCK_BYTES 18
#include "blocks/codebooks.glsl"

void load_block(uint64_t row, uint number, out uvec4 codes, out float factor) {
    uint d;
    half_and_words(row + number * BLOCK_BYTES, d, codes);
    factor = half_value(d);
}

#include "blocks/iq4.glsl"
