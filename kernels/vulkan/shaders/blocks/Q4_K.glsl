// A head with scales, then 128 bytes of codes. Blocks lie on 16-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 144
#define RUN 16
#include "blocks/k_scales.glsl"

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    Words4 block = Words4(row + chunk / 8 * BLOCK_BYTES);
    uint within = chunk % 8;
    uvec4 head = block.at[0];
    uvec4 codes = block.at[1 + within];
    vec2 factor, offset;
    k_scales(head, within / 2, factor, offset);
    [[unroll]] for (int i = 0; i < 4; i++) {
        vec4 low = bytes_of(codes[i] & 0x0f0f0f0f), high = bytes_of((codes[i] >> 4) & 0x0f0f0f0f);
        w[i] = fma(low, vec4(factor.x), vec4(offset.x));
        w[4 + i] = fma(high, vec4(factor.y), vec4(offset.y));
    }
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    Words4 block = Words4(row + run / 16 * BLOCK_BYTES);
    uint within = run % 16, quarter = within / 4, upper = within / 2 % 2;
    vec2 factor, offset;
    k_scales(block.at[0], quarter, factor, offset);
    uvec4 codes = (block.at[1 + quarter * 2 + within % 2] >> (upper * 4)) & 0x0f0f0f0f;
    [[unroll]] for (int i = 0; i < 4; i++)
        w[i] = fma(bytes_of(codes[i]), vec4(factor[upper]), vec4(offset[upper]));
}

// Integer products: the head, and 16 bytes of codes.
#define RAW_WORDS 8

void load_dot(uint64_t row, uint chunk, out uint raw[RAW_WORDS]) {
    Words4 block = Words4(row + chunk / 8 * BLOCK_BYTES);
    uvec4 head = block.at[0], codes = block.at[1 + chunk % 8];
    [[unroll]] for (int i = 0; i < 4; i++) {
        raw[i] = head[i];
        raw[4 + i] = codes[i];
    }
}

void decode_dot(uint raw[RAW_WORDS], uint64_t row, uint chunk, out int q[DOT_FOURS],
                out int scale[DOT_SPANS], out int least[DOT_SPANS], out vec2 f) {
    k_dot(raw, chunk % 8 / 2, scale, least, f)
    [[unroll]] for (int i = 0; i < 4; i++) {
        q[i] = int(raw[4 + i] & 0x0f0f0f0f);
        q[4 + i] = int((raw[4 + i] >> 4) & 0x0f0f0f0f);
    }
}
