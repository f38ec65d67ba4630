// 16 bytes of scales (low half) and minimums (high half), 64 bytes of 2-bit codes, `d`, `dmin`. Blocks
// lie on 4-byte boundaries.
#define BLOCK_ELEMENTS 256
#define BLOCK_BYTES 84
#define RUN 16
#include "blocks/quarters.glsl"

vec4 decode_four(uint codes, vec2 d, uint scale) {
    float factor = d.x * float(scale & 15), least = d.y * float(scale >> 4 & 15);
    return fma(bytes_of(codes & 0x03030303), vec4(factor), vec4(-least));
}

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    Words block = Words(row + chunk / 8 * BLOCK_BYTES);
    uint part = chunk_half(chunk), first = chunk_byte(chunk);
    vec2 d = unpackHalf2x16(block.at[20]);
    // Scales of 16 elements each: of these 32, the lower or the upper.
    uint shift = first / 16 * 8;
    uvec2 scales = uvec2(block.at[part * 2], block.at[part * 2 + 1]) >> shift;
    uint at = 4 + part * 8 + first / 4;
    uvec2 codes = uvec2(block.at[at], block.at[at + 1]);
    [[unroll]] for (uint i = 0; i < 4; i++)
        [[unroll]] for (uint j = 0; j < 2; j++)
            w[2 * i + j] = decode_four(codes[j] >> (2 * i), d, scales[i / 2] >> (i % 2 * 16));
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 16 * BLOCK_BYTES;
    vec2 d = unpackHalf2x16(Words(block).at[20]);
    uint scale = byte_at(block + run % 16);
    uint at = 4 + run_half(run) * 8 + run_byte(run) / 4;
    [[unroll]] for (uint i = 0; i < 4; i++)
        w[i] = decode_four(Words(block).at[at + i] >> (2 * run_quarter(run)), d, scale);
}
