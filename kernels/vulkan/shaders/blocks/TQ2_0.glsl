// 64 bytes of 2-bit codes (byte j of each 32: elements j, j + 32, j + 64, j + 96 of a half block), `d`:
// d * (q - 1). Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 66
#define RUN 16

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run % 16;
    float d = half_at(block + 64);
    uvec4 codes = words_at(block + part / 8 * 32 + part % 2 * 16) >> (part % 8 / 2 * 2);
    [[unroll]] for (int i = 0; i < 4; i++) w[i] = d * (bytes_of(codes[i] & 0x03030303) - 1.0);
}
