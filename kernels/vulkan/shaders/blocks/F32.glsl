// Plain numbers; rows are a multiple of four elements.
#define BLOCK_ELEMENTS 1
#define BLOCK_BYTES 4
#define RUN 4

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    Floats at = Floats(row + run * 16);
    w[0] = vec4(at.at[0], at.at[1], at.at[2], at.at[3]);
}
