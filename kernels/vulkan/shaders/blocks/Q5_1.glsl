// `d`, `m`, a word of fifth bits, 16 bytes of codes: d * q + m. Blocks lie on 8-byte boundaries.
#define BLOCK_BYTES 24
#define FIFTH_BITS
#define CODES 8
#define code_word aligned_word

void load_head(uint64_t block, out uint fifth, out float factor, out float offset) {
    uvec2 head = Words2(block).at[0];
    vec2 scales = unpackHalf2x16(head.x);
    fifth = head.y;
    factor = scales.x;
    offset = scales.y;
}

#include "blocks/nibbles.glsl"
