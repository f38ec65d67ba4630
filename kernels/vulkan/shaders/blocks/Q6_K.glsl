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

// Integer products: the chunks of decode_chunk, eight elements of each of four sub-blocks. What is
// loaded are the aligned words that hold the codes, two by two with one more, then the scales, then
// `d`.
#define DOT_SPANS 4
#define DOT_ZERO 32
#define RAW_WORDS 13
#define dot_element chunk_element

uint64_t dot_codes(uint64_t block, uint chunk) { return block + chunk_half(chunk) * 64 + chunk_byte(chunk); }
uint64_t dot_high(uint64_t block, uint chunk) { return block + 128 + chunk_half(chunk) * 32 + chunk_byte(chunk); }

void load_dot(uint64_t row, uint chunk, out uint raw[RAW_WORDS]) {
    uint64_t block = row + chunk / 8 * BLOCK_BYTES, codes = dot_codes(block, chunk);
    Words even = aligned_words(codes), odd = aligned_words(codes + 32);
    Words high = aligned_words(dot_high(block, chunk));
    Words scales = aligned_words(block + 192 + chunk_half(chunk) * 8);
    [[unroll]] for (int i = 0; i < 3; i++) {
        raw[i] = even.at[i];
        raw[3 + i] = odd.at[i];
        raw[6 + i] = high.at[i];
        raw[9 + i] = scales.at[i];
    }
    raw[12] = uint(Halves(block + 208).at[0]);
}

void decode_dot(uint raw[RAW_WORDS], uint64_t row, uint chunk, out int q[8],
                out int scale[DOT_SPANS], out int least[DOT_SPANS], out vec2 f) {
    // All parts of a block lie on the same side of a word's boundary.
    uint bits = misaligned_bits(row + chunk / 8 * BLOCK_BYTES);
    uint two[4][2];
    [[unroll]] for (int i = 0; i < 4; i++)
        [[unroll]] for (int j = 0; j < 2; j++) two[i][j] = straddling(raw[3 * i + j], raw[3 * i + j + 1], bits);
    f = vec2(half_value(raw[12]), 0.0);
    // Scale of quarter i: byte 2 * i, or the next one for the upper half of the sub-blocks.
    uint upper = chunk_byte(chunk) / 16 * 8;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        scale[i] = bitfieldExtract(int(two[3][i / 2] >> upper), int(i % 2) * 16, 8);
        least[i] = 0;
        [[unroll]] for (uint j = 0; j < 2; j++) {
            uint low = two[i % 2][j] >> (i / 2 * 4), high = two[2][j] >> (2 * i);
            q[2 * i + j] = int((low & 0x0f0f0f0f) | ((high & 0x03030303) << 4));
        }
    }
}
