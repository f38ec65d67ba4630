// 128 bytes of low codes (byte j of each 64: elements j and j + 64 of a half block), 64 bytes of high
// bit pairs (byte j of each 32: elements j, j + 32, j + 64, j + 96), 16 signed scales, `d`. Blocks lie
// on 2-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 210
#define RUN 16
#include "blocks/quarters.glsl"

vec4 decode_four(uint low, uint high, float factor) {
    uint q = (low & 0x0f0f0f0f) | ((high & 0x03030303) << 4);
    return fma(bytes_of(q), vec4(factor), vec4(-32.0 * factor));
}

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uint64_t block = row + chunk / 8 * BLOCK_BYTES;
    uint part = chunk_half(chunk), first = chunk_byte(chunk);
    uint64_t at = block + part * 64 + first;
    // Codes of the first and third quarters, of the second and fourth, high bits of all.
    uvec2 even = two_words_at(at), odd = two_words_at(at + 32);
    uvec2 high = two_words_at(block + 128 + part * 32 + first);
    SignedBytes scales = SignedBytes(block + 192 + part * 8 + first / 16);
    float d = half_at(block + 208);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        float factor = d * float(int(scales.at[2 * i]));
        uvec2 low = (i % 2 == 0 ? even : odd) >> (i / 2 * 4);
        [[unroll]] for (uint j = 0; j < 2; j++)
            w[2 * i + j] = decode_four(low[j], high[j] >> (2 * i), factor);
    }
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    uint part = run_half(run), quarter = run_quarter(run), first = run_byte(run);
    uvec4 low = words_at(block + part * 64 + quarter % 2 * 32 + first) >> (quarter / 2 * 4);
    uvec4 high = words_at(block + 128 + part * 32 + first) >> (2 * quarter);
    float factor = half_at(block + 208) * float(int(SignedBytes(block + 192).at[run % 16]));
    [[unroll]] for (uint i = 0; i < 4; i++) w[i] = decode_four(low[i], high[i], factor);
}

// Integer products: the chunks of decode_chunk, eight elements of each of four sub-blocks.
#define DOT_SPANS 4
#define dot_element chunk_element

void decode_dot(uint64_t row, uint chunk, out int q[8], out vec2 f[DOT_SPANS]) {
    uint64_t block = row + chunk / 8 * BLOCK_BYTES;
    uint part = chunk_half(chunk), first = chunk_byte(chunk);
    uint64_t at = block + part * 64 + first;
    uvec2 even = two_words_at(at), odd = two_words_at(at + 32);
    uvec2 high = two_words_at(block + 128 + part * 32 + first);
    SignedBytes scales = SignedBytes(block + 192 + part * 8 + first / 16);
    float d = half_at(block + 208);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        float factor = d * float(int(scales.at[2 * i]));
        uvec2 low = (i % 2 == 0 ? even : odd) >> (i / 2 * 4);
        [[unroll]] for (uint j = 0; j < 2; j++)
            q[2 * i + j] = int((low[j] & 0x0f0f0f0f) | (((high[j] >> (2 * i)) & 0x03030303) << 4));
        f[i] = vec2(factor, -32.0 * factor);
    }
}
