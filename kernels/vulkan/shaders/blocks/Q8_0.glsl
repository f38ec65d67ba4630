// `d`, 32 signed bytes; blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 32
#define BLOCK_BYTES 34
#define RUN 16
// A chunk is a block.
#define CHUNK 32

uint chunk_element(uint chunk, uint four) { return chunk * 32 + four * 4; }

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uint64_t block = row + chunk * BLOCK_BYTES;
    Words from = aligned_words(block);
    bool odd = misaligned_bits(block) != 0;
    uint word[9];
    [[unroll]] for (int i = 0; i < 9; i++) word[i] = from.at[i];
    float d = half_value(odd ? word[0] >> 16 : word[0] & 0xffff);
    [[unroll]] for (int i = 0; i < 8; i++)
        w[i] = d * signed_bytes_of(odd ? word[i + 1] : (word[i] >> 16) | (word[i + 1] << 16));
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 2 * BLOCK_BYTES;
    float d = half_at(block);
    uvec4 codes = words_at(block + 2 + run % 2 * 16);
    [[unroll]] for (int i = 0; i < 4; i++) w[i] = d * signed_bytes_of(codes[i]);
}
