// `d`, `m`, 16 bytes of codes: d * q + m. Blocks lie on 4-byte boundaries.
#define BLOCK_BYTES 20
#define CODES 4
#define code_word aligned_word

void load_head(uint64_t block, out uint fifth, out float factor, out float offset) {
    vec2 scales = unpackHalf2x16(aligned_word(block));
    fifth = 0;
    factor = scales.x;
    offset = scales.y;
}

#include "blocks/nibbles.glsl"
