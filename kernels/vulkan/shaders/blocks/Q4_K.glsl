// `d`, `dmin`, 12 bytes of scales and minimums, 128 bytes of codes; byte j of each 32 holds elements
// j (low half) and j + 32 (high half) of a quarter block. Blocks lie on 16-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 144
#define RUN 16
// A chunk is 16 bytes of codes: 16 elements and the 16 that are 32 further on.
#define CHUNK 32

uint chunk_element(uint chunk, uint four) {
    uint within = chunk % 8;
    return chunk / 8 * 256 + within / 2 * 64 + within % 2 * 16 + four % 4 * 4 + four / 4 * 32;
}

// Factors (x) and offsets (y) of sub-blocks 2 * quarter and 2 * quarter + 1.
void q4_k_scales(uvec4 head, uint quarter, out vec2 factor, out vec2 offset) {
    vec2 d = unpackHalf2x16(head.x);
    uint shift = quarter % 2 * 16;
    uvec2 s = uvec2(head.y >> shift, head.y >> (shift + 8));
    uvec2 m = uvec2(head.z >> shift, head.z >> (shift + 8));
    uvec2 rest = uvec2(head.w >> shift, head.w >> (shift + 8));
    bool first = quarter < 2;
    uvec2 scale = first ? s & 63 : (rest & 15) | ((s >> 2) & 48);
    uvec2 least = first ? m & 63 : ((rest >> 4) & 15) | ((m >> 2) & 48);
    factor = d.x * vec2(scale);
    offset = -d.y * vec2(least);
}

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uint64_t block = row + chunk / 8 * BLOCK_BYTES;
    uint within = chunk % 8;
    uvec4 head = Words4(block).at[0];
    uvec4 codes = Words4(block).at[1 + within];
    vec2 factor, offset;
    q4_k_scales(head, within / 2, factor, offset);
    [[unroll]] for (int i = 0; i < 4; i++) {
        uint word = codes[i];
        uvec4 low = uvec4(word, word >> 8, word >> 16, word >> 24) & 15;
        uvec4 high = uvec4(word >> 4, word >> 12, word >> 20, word >> 28) & 15;
        w[i] = fma(vec4(low), vec4(factor.x), vec4(offset.x));
        w[4 + i] = fma(vec4(high), vec4(factor.y), vec4(offset.y));
    }
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint within = run % 16, quarter = within / 4, upper = within / 2 % 2;
    vec2 factor, offset;
    q4_k_scales(Words4(block).at[0], quarter, factor, offset);
    uvec4 codes = Words4(block).at[1 + quarter * 2 + within % 2] >> (upper * 4);
    [[unroll]] for (int i = 0; i < 4; i++) {
        uvec4 q = uvec4(codes[i], codes[i] >> 8, codes[i] >> 16, codes[i] >> 24) & 15;
        w[i] = fma(vec4(q), vec4(factor[upper]), vec4(offset[upper]));
    }
}
