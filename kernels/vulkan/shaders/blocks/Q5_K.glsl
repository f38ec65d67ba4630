// A head with scales, 32 bytes of fifth bits (bit i / 32 of byte i % 32), then 128 bytes of codes.
// Blocks lie on 16-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 176
#define RUN 16
#include "blocks/k_scales.glsl"

vec4 decode_four(uint codes, uint fifth, float factor, float offset) {
    uint q = (codes & 0x0f0f0f0f) | ((fifth & 0x01010101) << 4);
    return fma(bytes_of(q), vec4(factor), vec4(offset));
}

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    Words4 block = Words4(row + chunk / 8 * BLOCK_BYTES);
    uint within = chunk % 8, quarter = within / 2;
    uvec4 head = block.at[0];
    uvec4 fifth = block.at[1 + within % 2] >> (2 * quarter);
    uvec4 codes = block.at[3 + within];
    vec2 factor, offset;
    k_scales(head, quarter, factor, offset);
    [[unroll]] for (int i = 0; i < 4; i++) {
        w[i] = decode_four(codes[i], fifth[i], factor.x, offset.x);
        w[4 + i] = decode_four(codes[i] >> 4, fifth[i] >> 1, factor.y, offset.y);
    }
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    Words4 block = Words4(row + run / 16 * BLOCK_BYTES);
    uint within = run % 16, quarter = within / 4, upper = within / 2 % 2;
    vec2 factor, offset;
    k_scales(block.at[0], quarter, factor, offset);
    uvec4 fifth = block.at[1 + within % 2] >> (2 * quarter + upper);
    uvec4 codes = block.at[3 + quarter * 2 + within % 2] >> (4 * upper);
    [[unroll]] for (int i = 0; i < 4; i++)
        w[i] = decode_four(codes[i], fifth[i], factor[upper], offset[upper]);
}

// Integer products: the head, 16 bytes of fifth bits, and 16 of codes.
#define RAW_WORDS 12

void load_dot(uint64_t row, uint chunk, out uint raw[RAW_WORDS]) {
    Words4 block = Words4(row + chunk / 8 * BLOCK_BYTES);
    uint within = chunk % 8;
    uvec4 head = block.at[0], fifth = block.at[1 + within % 2], codes = block.at[3 + within];
    [[unroll]] for (int i = 0; i < 4; i++) {
        raw[i] = head[i];
        raw[4 + i] = codes[i];
        raw[8 + i] = fifth[i];
    }
}

void decode_dot(uint raw[RAW_WORDS], uint64_t row, uint chunk, out int q[DOT_FOURS],
                out int scale[DOT_SPANS], out int least[DOT_SPANS], out vec2 f) {
    uint quarter = chunk % 8 / 2;
    k_dot(raw, quarter, scale, least, f)
    [[unroll]] for (int i = 0; i < 4; i++) {
        uint codes = raw[4 + i], fifth = raw[8 + i] >> (2 * quarter);
        q[i] = int((codes & 0x0f0f0f0f) | ((fifth & 0x01010101) << 4));
        q[4 + i] = int(((codes >> 4) & 0x0f0f0f0f) | (((fifth >> 1) & 0x01010101) << 4));
    }
}
