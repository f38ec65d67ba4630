// 32 bytes of third bits (set: no offset), 64 bytes of 2-bit codes, 12 bytes of six-bit scales with an
// offset of 32, `d`. Blocks lie on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 110
#define RUN 16
#include "blocks/quarters.glsl"

// Scales of the eight sub-blocks of a half block in bytes, the offset not yet taken off; and `d`.
uvec2 q3_k_scales(uint64_t block, uint part, out float d) {
    uvec4 tail = words_at(block + 96);
    d = half_value(tail.w & 0xffff);
    uvec2 low = (tail.xy >> (4 * part)) & 0x0f0f0f0f;
    uvec2 high = (uvec2(tail.z, tail.z >> 2) >> (4 * part)) & 0x03030303;
    return low | (high << 4);
}

vec4 decode_four(uint codes, uint third, float d, uint scale) {
    float factor = d * (float(scale & 63) - 32.0);
    uint q = (codes & 0x03030303) | ((third & 0x01010101) << 2);
    return fma(bytes_of(q), vec4(factor), vec4(-4.0 * factor));
}

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uint64_t block = row + chunk / 8 * BLOCK_BYTES;
    uint part = chunk_half(chunk), first = chunk_byte(chunk);
    float d;
    uvec2 scales = q3_k_scales(block, part, d) >> (first / 16 * 8);
    uvec2 third = two_words_at(block + first) >> (4 * part);
    uvec2 codes = two_words_at(block + 32 + part * 32 + first);
    [[unroll]] for (uint i = 0; i < 4; i++)
        [[unroll]] for (uint j = 0; j < 2; j++)
            w[2 * i + j] = decode_four(codes[j] >> (2 * i), third[j] >> i, d,
                                       scales[i / 2] >> (i % 2 * 16));
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run_half(run), quarter = run_quarter(run), first = run_byte(run);
    float d;
    uvec2 scales = q3_k_scales(block, part, d);
    uint scale = scales[run % 8 / 4] >> (run % 4 * 8);
    uvec4 third = words_at(block + first) >> (4 * part + quarter);
    uvec4 codes = words_at(block + 32 + part * 32 + first) >> (2 * quarter);
    [[unroll]] for (uint i = 0; i < 4; i++) w[i] = decode_four(codes[i], third[i], d, scale);
}
