// An exponent, 16 bytes of four-bit floating point codes: byte j holds elements j and j + 16. Blocks lie
// on any boundary. Exponents above 240 (2^113) become infinite here.
#define BLOCK_ELEMENTS 32
#define BLOCK_BYTES 17
#define RUN 16
// A chunk is a block.
#define CHUNK 32
#include "blocks/e2m1.glsl"

uint chunk_element(uint chunk, uint four) { return chunk * 32 + four * 4; }

void load_block(uint64_t block, out uvec4 codes, out float factor) {
    uint exponent = byte_at(block);
    codes = words_at(block + 1);
    // 2^(exponent - 127) * E2M1_FACTOR.
    factor = uintBitsToFloat(min(exponent + 14, 255) << 23);
}

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uvec4 codes;
    float factor;
    load_block(row + chunk * BLOCK_BYTES, codes, factor);
    [[unroll]] for (int i = 0; i < 4; i++) {
        w[i] = factor * e2m1_four(codes[i]);
        w[4 + i] = factor * e2m1_four(codes[i] >> 4);
    }
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uvec4 codes;
    float factor;
    load_block(row + run / 2 * BLOCK_BYTES, codes, factor);
    [[unroll]] for (int i = 0; i < 4; i++) w[i] = factor * e2m1_four(codes[i] >> (run % 2 * 4));
}
