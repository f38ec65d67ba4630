// An exponent, 16 bytes of four-bit floating point codes: byte j holds elements j and j + 16. Blocks lie
// on any boundary. Exponents above 240 (2^113) become infinite here.
#define BLOCK_ELEMENTS 32
#define BLOCK_BYTES 17
#define RUN 8
// A chunk is a word of codes: so neighbouring lanes take neighbouring elements of x.
#define CHUNK 8
#include "blocks/e2m1.glsl"

uint chunk_element(uint chunk, uint four) { return chunk / 4 * 32 + chunk % 4 * 4 + four * 16; }

// 2^(exponent - 127) * E2M1_FACTOR.
float mxfp4_factor(uint64_t block) { return uintBitsToFloat(min(byte_at(block) + 14, 255) << 23); }

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uint64_t block = row + chunk / 4 * BLOCK_BYTES;
    float factor = mxfp4_factor(block);
    uint codes = word_at(block + 1 + chunk % 4 * 4);
    w[0] = factor * e2m1_four(codes);
    w[1] = factor * e2m1_four(codes >> 4);
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 4 * BLOCK_BYTES;
    uint part = run % 4;
    float factor = mxfp4_factor(block);
    uvec2 codes = two_words_at(block + 1 + part % 2 * 8) >> (part / 2 * 4);
    [[unroll]] for (int i = 0; i < 2; i++) w[i] = factor * e2m1_four(codes[i]);
}
