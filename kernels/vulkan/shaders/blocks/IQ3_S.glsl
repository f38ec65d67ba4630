// `d`, 64 bytes of low vector numbers, 8 bytes of their ninth bits, 32 bytes of signs, 4 bytes of two
// scales for 32 elements each. Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 110
#define RUN 16
#include "blocks/codebooks.glsl"

void decode_with(uint64_t tables, uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run % 16;
    uint low = word_at(block + 2 + part * 4);
    uint ninth = byte_at(block + 66 + part / 2) >> (part % 2 * 4);
    uint signs = uint(Halves(block + 74).at[part]);
    uint scale = byte_at(block + 106 + part / 4) >> (part % 4 / 2 * 4) & 15;
    float d = half_at(block) * float(1 + 2 * scale);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint index = (low >> (8 * i) & 255) | (ninth >> i & 1) << 8;
        w[i] = signed_four(vector_of_four(tables, IQ3_S_GRID, index), signs >> (4 * i), d);
    }
}
#define decode_run(row, run, w) decode_with(tables, row, run, w)
