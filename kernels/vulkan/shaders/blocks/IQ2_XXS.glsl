// `d`, then for each 32 elements four vector numbers (bytes) and a word of four times seven bits of
// signs and a four-bit scale. Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 66
#define RUN 16
#include "blocks/codebooks.glsl"

void decode_with(uint64_t tables, uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uvec2 group = two_words_at(block + 2 + run % 16 / 2 * 8);
    float d = half_at(block) * (0.5 + float(group.y >> 28)) * 0.25;
    [[unroll]] for (uint i = 0; i < 2; i++) {
        uint number = run % 2 * 2 + i, index = (group.x >> (8 * number)) & 255;
        uvec2 elements = vector_of_eight(tables, IQ2_XXS_GRID, index);
        uint signs = even_signs(group.y >> (7 * number));
        w[2 * i] = signed_four(elements.x, signs, d);
        w[2 * i + 1] = signed_four(elements.y, signs >> 4, d);
    }
}
#define decode_run(row, run, w) decode_with(tables, row, run, w)
