// `d`, `m`, a word of fifth bits, 16 bytes of codes: d * q + m. Blocks lie on 8-byte boundaries.
#define BLOCK_BYTES 24
#define FIFTH_BITS

void load_block(uint64_t block, out uvec4 codes, out uint fifth, out float factor, out float offset) {
    Words2 from = Words2(block);
    uvec2 head = from.at[0];
    codes = uvec4(from.at[1], from.at[2]);
    vec2 scales = unpackHalf2x16(head.x);
    fifth = head.y;
    factor = scales.x;
    offset = scales.y;
}

#include "blocks/nibbles.glsl"
