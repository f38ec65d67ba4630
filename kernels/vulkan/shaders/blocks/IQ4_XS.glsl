// `d`, a half of eight times two high bits of scale, four bytes of low halves of scales, then codes of
// eight times 32 elements as in IQ4_NL. Scales have an offset of 32. Blocks lie on 8-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 136
#define code_word aligned_word
#include "blocks/codebooks.glsl"

void load_head(uint64_t row, uint number, out uint64_t codes, out float factor) {
    uint64_t block = row + number / 8 * BLOCK_BYTES;
    uint part = number % 8;
    uvec2 head = Words2(block).at[0];
    uint scale = (head.y >> (4 * part) & 15) | (head.x >> (16 + 2 * part) & 3) << 4;
    codes = block + (8 + 16 * part);
    factor = half_value(head.x & 0xffff) * (float(scale) - 32.0);
}

#include "blocks/iq4.glsl"
