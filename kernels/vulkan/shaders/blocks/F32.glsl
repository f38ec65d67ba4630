// Plain numbers; rows are a multiple of four elements.
#define BLOCK_ELEMENTS 1
#define BLOCK_BYTES 4
#define RUN 4

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) { w[0] = Floats4(row + run * 16).at[0]; }
