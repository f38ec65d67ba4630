// Half precision numbers; rows are a multiple of four elements.
#define BLOCK_ELEMENTS 1
#define BLOCK_BYTES 2
#define RUN 4

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uvec2 words = Words2(row + run * 8).at[0];
    w[0] = vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y));
}
