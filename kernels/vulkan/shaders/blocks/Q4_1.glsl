// `d`, `m`, 16 bytes of codes: d * q + m. Blocks lie on 4-byte boundaries.
#define BLOCK_BYTES 20

void load_block(uint64_t block, out uvec4 codes, out uint fifth, out float factor, out float offset) {
    Words from = Words(block);
    vec2 scales = unpackHalf2x16(from.at[0]);
    codes = uvec4(from.at[1], from.at[2], from.at[3], from.at[4]);
    fifth = 0;
    factor = scales.x;
    offset = scales.y;
}

#include "blocks/nibbles.glsl"
