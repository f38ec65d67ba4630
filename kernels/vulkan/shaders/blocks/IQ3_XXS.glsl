// `d`, 64 bytes of vector numbers, then for each 32 elements a word of four times seven bits of signs
// (for two vectors each) and a four-bit scale. Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 98
#define RUN 16
#include "blocks/codebooks.glsl"

void decode_with(uint64_t tables, uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run % 16;
    uint indices = word_at(block + 2 + part * 4);
    uint word = word_at(block + 66 + part / 2 * 4);
    float d = half_at(block) * (0.5 + float(word >> 28)) * 0.5;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint elements = vector_of_four(tables, IQ3_XXS_GRID, indices >> (8 * i) & 255);
        uint signs = even_signs(word >> (7 * (part % 2 * 2 + i / 2)));
        w[i] = signed_four(elements, signs >> (i % 2 * 4), d);
    }
}
#define decode_run(row, run, w) decode_with(tables, row, run, w)
