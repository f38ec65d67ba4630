// `d`, 16 bytes of codes of uneven values: byte j holds elements j and j + 16. Blocks lie on 2-byte
// boundaries.
#define BLOCK_ELEMENTS 32
#define BLOCK_BYTES 18
#define code_word word_of_halves
#include "blocks/codebooks.glsl"

void load_head(uint64_t row, uint number, out uint64_t codes, out float factor) {
    uint64_t block = row + number * BLOCK_BYTES;
    codes = block + 2;
    factor = half_at(block);
}

#include "blocks/iq4.glsl"
