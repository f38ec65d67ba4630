// `d`, 64 codes of two bits: d * (q - 1). Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 64
#define BLOCK_BYTES 18
#define RUN 16

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 4 * BLOCK_BYTES;
    float d = half_at(block);
    uint codes = word_at(block + 2 + run % 4 * 4);
    [[unroll]] for (int i = 0; i < 4; i++)
        w[i] = d * (vec4((uvec4(codes) >> (uvec4(0, 2, 4, 6) + 8 * i)) & 3) - 1.0);
}
