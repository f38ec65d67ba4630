// `d`, 32 signed bytes; blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 32
#define BLOCK_BYTES 34
#define RUN 8

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 4 * BLOCK_BYTES;
    float d = half_at(block);
    uvec2 codes = two_words_at(block + 2 + run % 4 * 8);
    [[unroll]] for (int i = 0; i < 2; i++) w[i] = d * signed_bytes_of(codes[i]);
}
