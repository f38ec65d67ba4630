// `d`, 32 bytes of low vector numbers, 32 bytes of signs, 8 bytes of high number bits (two for each
// vector), 8 bytes of two scales for 16 elements each. Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 82
#define RUN 16
#include "blocks/codebooks.glsl"

void decode_with(uint64_t tables, uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run % 16, shift = part % 2 * 4;
    uint low = uint(Halves(block + 2).at[part]), signs = uint(Halves(block + 34).at[part]);
    uint high = byte_at(block + 66 + part / 2) >> shift;
    uint scale = byte_at(block + 74 + part / 2) >> shift & 15;
    float d = half_at(block) * (0.5 + float(scale)) * 0.25;
    [[unroll]] for (uint i = 0; i < 2; i++) {
        uint index = (low >> (8 * i) & 255) | (high >> (2 * i) & 3) << 8;
        uvec2 elements = vector_of_eight(tables, IQ2_S_GRID, index);
        w[2 * i] = signed_four(elements.x, signs >> (8 * i), d);
        w[2 * i + 1] = signed_four(elements.y, signs >> (8 * i + 4), d);
    }
}
#define decode_run(row, run, w) decode_with(tables, row, run, w)
