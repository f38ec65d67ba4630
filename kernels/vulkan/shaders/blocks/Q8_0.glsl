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

// Integer products: a whole block.
#define DOT_SPANS 1
uint dot_element(uint chunk, uint four) { return chunk * 32 + four * 4; }

void decode_dot(uint64_t row, uint chunk, out int q[8], out vec2 f[DOT_SPANS]) {
    uint64_t block = row + chunk * BLOCK_BYTES;
    uvec4 first = words_at(block + 2), last = words_at(block + 18);
    [[unroll]] for (int i = 0; i < 4; i++) {
        q[i] = int(first[i]);
        q[4 + i] = int(last[i]);
    }
    f[0] = vec2(half_at(block), 0.0);
}
