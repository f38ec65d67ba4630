// Blocks of 32 elements with one factor and one offset, whose 16 bytes of codes hold element j in the
// low and element j + 16 in the high half of byte j. The including file defines BLOCK_BYTES,
//   CODES, code_word(address)                    where the codes begin; how a word of them is loaded
//   load_head(block, fifth, factor, offset)      bit j of `fifth` is the fifth bit of element j's code,
//                                                read if FIFTH_BITS is defined.
#define BLOCK_ELEMENTS 32
#define RUN 8
// A chunk is a word of codes: so neighbouring lanes take neighbouring elements of x.
#define CHUNK 8

uint chunk_element(uint chunk, uint four) { return chunk / 4 * 32 + chunk % 4 * 4 + four * 16; }

// Elements `first`.. of the four whose four-bit codes are in the bytes of `codes`.
vec4 decode_four(uint codes, uint fifth, uint first, float factor, float offset) {
    uint q = codes & 0x0f0f0f0f;
#ifdef FIFTH_BITS
    q |= spread_bits(fifth >> first) << 4;
#endif
    return fma(bytes_of(q), vec4(factor), vec4(offset));
}

void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uint64_t block = row + chunk / 4 * BLOCK_BYTES;
    uint fifth, first = chunk % 4 * 4;
    float factor, offset;
    load_head(block, fifth, factor, offset);
    uint codes = code_word(block + CODES + first);
    w[0] = decode_four(codes, fifth, first, factor, offset);
    w[1] = decode_four(codes >> 4, fifth, first + 16, factor, offset);
}

void decode_run(uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t block = row + run / 4 * BLOCK_BYTES;
    uint fifth, part = run % 4;
    float factor, offset;
    load_head(block, fifth, factor, offset);
    [[unroll]] for (uint i = 0; i < 2; i++) {
        uint codes = code_word(block + CODES + part % 2 * 8 + 4 * i) >> (part / 2 * 4);
        w[i] = decode_four(codes, fifth, part * 8 + 4 * i, factor, offset);
    }
}

// Integer products: a whole block. What is loaded are the aligned words that hold its codes; the head
// is short and read when it is needed.
#define DOT_FOURS 8
#define DOT_SPANS 1
#define RAW_WORDS 5
uint dot_element(uint chunk, uint four) { return chunk * 32 + four * 4; }

void load_dot(uint64_t row, uint chunk, out uint raw[RAW_WORDS]) {
    Words codes = aligned_words(row + chunk * BLOCK_BYTES + CODES);
    [[unroll]] for (int i = 0; i < RAW_WORDS; i++) raw[i] = codes.at[i];
}

void decode_dot(uint raw[RAW_WORDS], uint64_t row, uint chunk, out int q[DOT_FOURS],
                out int scale[DOT_SPANS], out int least[DOT_SPANS], out vec2 f) {
    uint64_t block = row + chunk * BLOCK_BYTES;
    uint fifth, bits = misaligned_bits(block + CODES);
    float factor, offset;
    load_head(block, fifth, factor, offset);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint codes = straddling(raw[i], raw[i + 1], bits);
        uint low = codes & 0x0f0f0f0f, high = (codes >> 4) & 0x0f0f0f0f;
#ifdef FIFTH_BITS
        low |= spread_bits(fifth >> (4 * i)) << 4;
        high |= spread_bits(fifth >> (4 * i + 16)) << 4;
#endif
        q[i] = int(low);
        q[4 + i] = int(high);
    }
    scale[0] = 1;
    least[0] = 1;
    f = vec2(factor, offset);
}
