// `d`, 32 signed bytes; blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 32
#define BLOCK_BYTES 34
#define RUN 16

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    Halves block = Halves(row + run / 2 * BLOCK_BYTES);
    float d = half_value(uint(block.at[0]));
    uint first = 1 + run % 2 * 8;
    [[unroll]] for (int i = 0; i < 4; i++) {
        int low = int(uint(block.at[first + 2 * i])), high = int(uint(block.at[first + 2 * i + 1]));
        ivec4 q = ivec4(bitfieldExtract(low, 0, 8), bitfieldExtract(low, 8, 8),
                        bitfieldExtract(high, 0, 8), bitfieldExtract(high, 8, 8));
        w[i] = d * vec4(q);
    }
}
