// Blocks of 32 elements with one factor and one offset, whose 16 bytes of codes hold element j in the
// low and element j + 16 in the high half of byte j. The including file defines BLOCK_BYTES and
//   load_block(block, codes, fifth, factor, offset)
// where bit j of `fifth` is the fifth bit of element j's code; it is read if FIFTH_BITS is defined.
#define BLOCK_ELEMENTS 32
#define RUN 16
// A chunk is a block.
#define CHUNK 32

uint chunk_element(uint chunk, uint four) { return chunk * 32 + four * 4; }

// Elements `first`.. of the four whose four-bit codes are in the bytes of `codes`.
vec4 decode_four(uint codes, uint fifth, uint first, float factor, float offset) {
    uint q = codes & 0x0f0f0f0f;
#ifdef FIFTH_BITS
    q |= spread_bits(fifth >> first) << 4;
#endif
    return fma(bytes_of(q), vec4(factor), vec4(offset));
}

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uvec4 codes;
    uint fifth;
    float factor, offset;
    load_block(row + chunk * BLOCK_BYTES, codes, fifth, factor, offset);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = decode_four(codes[i], fifth, 4 * i, factor, offset);
        w[4 + i] = decode_four(codes[i] >> 4, fifth, 16 + 4 * i, factor, offset);
    }
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uvec4 codes;
    uint fifth;
    float factor, offset;
    load_block(row + run / 2 * BLOCK_BYTES, codes, fifth, factor, offset);
    uint upper = run % 2;
    [[unroll]] for (uint i = 0; i < 4; i++)
        w[i] = decode_four(codes[i] >> (4 * upper), fifth, 16 * upper + 4 * i, factor, offset);
}
