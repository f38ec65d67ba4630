// 32 bytes of low vector numbers, 16 bytes with four bits for each vector (three high number bits, the
// sign of an offset), four halves of four times three bits of scale for 16 elements each, whose top four
// bits together are `d`. Blocks lie on 8-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 56
#define RUN 16
#include "blocks/codebooks.glsl"

void decode_with(uint64_t tables, uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run % 16;
    uvec2 scales = Words2(block + 48).at[0];
    uint top = (scales.x >> 12 & 0xf) | (scales.x >> 24 & 0xf0)
             | (scales.y >> 4 & 0xf00) | (scales.y >> 16 & 0xf000);
    uint scale = scales[part / 8] >> (part / 4 % 2 * 16 + 3 * (part % 4)) & 7;
    float d = half_value(top) * float(2 * scale + 1);
    uint low = uint(Halves(block).at[part]), high = byte_at(block + 32 + part);
    [[unroll]] for (uint i = 0; i < 2; i++) {
        uint four = high >> (4 * i);
        uvec2 elements = vector_of_eight(tables, IQ1_S_GRID, (low >> (8 * i) & 255) | (four & 7) << 8);
        float delta = (four & 8) != 0 ? -0.125 : 0.125;
        w[2 * i] = d * (signed_bytes_of(elements.x) + delta);
        w[2 * i + 1] = d * (signed_bytes_of(elements.y) + delta);
    }
}
#define decode_run(row, run, w) decode_with(tables, row, run, w)
