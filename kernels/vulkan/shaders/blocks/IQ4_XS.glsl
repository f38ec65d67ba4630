// `d`, a half of eight times two high bits of scale, four bytes of low halves of scales, then codes of
// eight times 32 elements as in IQ4_NL. Scales have an offset of 32. Blocks lie on 8-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 136
#include "blocks/codebooks.glsl"

void load_block(uint64_t row, uint number, out uvec4 codes, out float factor) {
    Words2 block = Words2(row + number / 8 * BLOCK_BYTES);
    uint part = number % 8;
    uvec2 head = block.at[0];
    codes = uvec4(block.at[1 + 2 * part], block.at[2 + 2 * part]);
    uint scale = (head.y >> (4 * part) & 15) | (head.x >> (16 + 2 * part) & 3) << 4;
    factor = half_value(head.x & 0xffff) * (float(scale) - 32.0);
}

#include "blocks/iq4.glsl"
