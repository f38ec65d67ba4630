// Base-3 digits of elements -1, 0, 1: a byte is the fraction 0.d0 d1 d2 d3 d4 times 256, rounded up; 32
// bytes hold elements 0..160 (digit n of byte j: element 32n + j), 16 bytes 160..240 likewise, 4 bytes
// of four digits the rest; then `d`. Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 54
#define RUN 16

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run % 16;
    float d = half_at(block + 52);
    bool last = part == 15;
    uint first = part < 10 ? part % 2 * 16 : last ? 48 : 32;
    uint digit = part < 10 ? part / 2 : part - 10;
    uvec4 words = words_at(block + first);
    const uint powers[5] = uint[](1, 3, 9, 27, 81);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        // Multiplying a fraction by 3^n brings digit n to the front.
        uint word = last ? words[0] : words[i], power = powers[last ? i : digit];
        uvec4 fractions = (uvec4(word, word >> 8, word >> 16, word >> 24) & 255) * power & 255;
        w[i] = d * (vec4(fractions * 3 >> 8) - 1.0);
    }
}
