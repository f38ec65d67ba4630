// Four eight-bit floating point scales, then for each eight bytes of four-bit codes: byte j holds
// elements j and j + 8 of sixteen. Blocks lie on 4-byte boundaries.
#define BLOCK_ELEMENTS 64
#define BLOCK_BYTES 36
#define RUN 16
#include "blocks/e2m1.glsl"

// An unsigned number of four bits of exponent and three of mantissa; 0x7f stands for zero.
float ue4m3(uint bits) {
    uint exponent = bits >> 3 & 15, mantissa = bits & 7;
    if (bits == 0x7f) return 0.0;
    if (exponent == 0) return float(mantissa) * 0.001953125;
    return uintBitsToFloat((exponent + 120) << 23 | mantissa << 20);
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    Words block = Words(row + run / 4 * BLOCK_BYTES);
    uint part = run % 4;
    float factor = ue4m3(block.at[0] >> (8 * part) & 255) * E2M1_FACTOR;
    [[unroll]] for (uint i = 0; i < 2; i++) {
        uint codes = block.at[1 + 2 * part + i];
        w[i] = factor * e2m1_four(codes);
        w[2 + i] = factor * e2m1_four(codes >> 4);
    }
}
