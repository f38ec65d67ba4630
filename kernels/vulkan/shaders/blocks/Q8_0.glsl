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

// Integer products: a whole block. What is loaded are the aligned words that hold it.
#define DOT_FOURS 8
#define DOT_SPANS 1
#define RAW_WORDS 10
uint dot_element(uint chunk, uint four) { return chunk * 32 + four * 4; }

void load_dot(uint64_t row, uint chunk, out uint raw[RAW_WORDS]) {
    uint64_t block = row + chunk * BLOCK_BYTES;
    Words codes = aligned_words(block + 2);
    [[unroll]] for (int i = 0; i < 9; i++) raw[i] = codes.at[i];
    raw[9] = uint(Halves(block).at[0]);
}

void decode_dot(uint raw[RAW_WORDS], uint64_t row, uint chunk, out int q[DOT_FOURS],
                out int scale[DOT_SPANS], out int least[DOT_SPANS], out vec2 f) {
    uint bits = misaligned_bits(row + chunk * BLOCK_BYTES + 2);
    [[unroll]] for (int i = 0; i < 8; i++) q[i] = int(straddling(raw[i], raw[i + 1], bits));
    scale[0] = 1;
    least[0] = 0;
    f = vec2(half_value(raw[9]), 0.0);
}
