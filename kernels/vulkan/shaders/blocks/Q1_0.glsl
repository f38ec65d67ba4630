// `d`, 128 bits: d where one is set, else -d. Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 128
#define BLOCK_BYTES 18
#define RUN 16

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    Halves block = Halves(row + run / 8 * BLOCK_BYTES);
    float d = half_value(uint(block.at[0]));
    uint bits = uint(block.at[1 + run % 8]);
    [[unroll]] for (int i = 0; i < 4; i++)
        w[i] = d * (2.0 * vec4((uvec4(bits) >> (uvec4(0, 1, 2, 3) + 4 * i)) & 1) - 1.0);
}
