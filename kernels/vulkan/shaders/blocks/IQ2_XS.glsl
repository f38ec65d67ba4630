// `d`, 32 halves of nine bits of vector number and seven of signs, eight bytes of two scales for 16
// elements each. Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 74
#define RUN 16
#include "blocks/codebooks.glsl"

void decode_with(uint64_t tables, uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run % 16;
    uint vectors = word_at(block + 2 + part * 4);
    uint scale = byte_at(block + 66 + part / 2) >> (part % 2 * 4) & 15;
    float d = half_at(block) * (0.5 + float(scale)) * 0.25;
    [[unroll]] for (uint i = 0; i < 2; i++) {
        uint code = vectors >> (16 * i);
        uvec2 elements = vector_of_eight(tables, IQ2_XS_GRID, code & 511);
        uint signs = even_signs(code >> 9);
        w[2 * i] = signed_four(elements.x, signs, d);
        w[2 * i + 1] = signed_four(elements.y, signs >> 4, d);
    }
}
#define decode_run(row, run, w) decode_with(tables, row, run, w)
