// Upper halves of f32; rows are a multiple of four elements.
#define BLOCK_ELEMENTS 1
#define BLOCK_BYTES 2
#define RUN 4

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uvec2 words = Words2(row + run * 8).at[0];
    w[0] = uintBitsToFloat(uvec4(words.x << 16, words.x & 0xffff0000,
                                 words.y << 16, words.y & 0xffff0000));
}
