// `d`, 32 bytes of low vector numbers, then for each 32 elements a half of four times three high number
// bits, three bits of scale and the sign of an offset. Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 50
#define RUN 16
#include "blocks/codebooks.glsl"

void decode_with(uint64_t tables, uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run % 16;
    uint low = uint(Halves(block + 2).at[part]), word = uint(Halves(block + 34).at[part / 2]);
    float d = half_at(block) * float(2 * (word >> 12 & 7) + 1);
    float delta = word >> 15 == 1 ? -0.125 : 0.125;
    [[unroll]] for (uint i = 0; i < 2; i++) {
        uint high = word >> (3 * (part % 2 * 2 + i)) & 7;
        uint index = (low >> (8 * i) & 255) | high << 8;
        uvec2 elements = vector_of_eight(tables, IQ1_S_GRID, index);
        w[2 * i] = d * (signed_bytes_of(elements.x) + delta);
        w[2 * i + 1] = d * (signed_bytes_of(elements.y) + delta);
    }
}
#define decode_run(row, run, w) decode_with(tables, row, run, w)
