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

// Integer products: a chunk is 16 elements of each of four sub-blocks of a half block, which have a scale
// each. What is loaded are the aligned words that hold the codes, four by four with one more, then the
// scales, then `d`.
#define DOT_FOURS 16
#define DOT_SPANS 4
#define DOT_ZERO 32
#define DOT_TOGETHER 2
#define RAW_WORDS 19

uint dot_element(uint chunk, uint four) {
    return chunk / 2 * 128 + four / 4 * 32 + chunk % 2 * 16 + four % 4 * 4;
}

void load_dot(uint64_t row, uint chunk, out uint raw[RAW_WORDS]) {
    uint64_t block = row + chunk / 4 * BLOCK_BYTES;
    uint part = chunk / 2 % 2, first = chunk % 2 * 16;
    Words even = aligned_words(block + part * 64 + first), odd = aligned_words(block + part * 64 + 32 + first);
    Words high = aligned_words(block + 128 + part * 32 + first), scales = aligned_words(block + 192 + part * 8);
    [[unroll]] for (int i = 0; i < 5; i++) {
        raw[i] = even.at[i];
        raw[5 + i] = odd.at[i];
        raw[10 + i] = high.at[i];
    }
    [[unroll]] for (int i = 0; i < 3; i++) raw[15 + i] = scales.at[i];
    raw[18] = uint(Halves(block + 208).at[0]);
}

void decode_dot(uint raw[RAW_WORDS], uint64_t row, uint chunk, out int q[DOT_FOURS],
                out int scale[DOT_SPANS], out int least[DOT_SPANS], out vec2 f) {
    // All parts of a block lie on the same side of a word's boundary.
    uint bits = misaligned_bits(row + chunk / 4 * BLOCK_BYTES);
    f = vec2(half_value(raw[18]), 0.0);
    [[unroll]] for (uint j = 0; j < 4; j++) {
        uint high = straddling(raw[10 + j], raw[11 + j], bits);
        [[unroll]] for (uint i = 0; i < 4; i++) {
            uint from = i % 2 * 5 + j, low = straddling(raw[from], raw[from + 1], bits) >> (i / 2 * 4);
            q[4 * i + j] = int((low & 0x0f0f0f0f) | (((high >> (2 * i)) & 0x03030303) << 4));
        }
    }
    // Scale of quarter i: byte 2 * i, or the next one for the upper 16 elements.
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint two = straddling(raw[15 + i / 2], raw[16 + i / 2], bits) >> (chunk % 2 * 8);
        scale[i] = bitfieldExtract(int(two), int(i % 2) * 16, 8);
        least[i] = 0;
    }
}
