// 32 elements of IQ4: byte j of 16 holds the codes of elements j and j + 16. The including file defines
//   load_head(row, number, codes, factor)   for the 32 elements from 32 * number on: the address of their
//                                           codes and their factor;
//   code_word(address)                      how a word of codes is loaded.
#define RUN 8
// A chunk is a word of codes: so neighbouring lanes take neighbouring elements of x.
#define CHUNK 8

uint chunk_element(uint chunk, uint four) { return chunk / 4 * 32 + chunk % 4 * 4 + four * 16; }

void chunk_with(uint64_t tables, uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uint64_t codes;
    float factor;
    load_head(row, chunk / 4, codes, factor);
    uint word = code_word(codes + chunk % 4 * 4);
    [[unroll]] for (int i = 0; i < 4; i++) {
        vec2 pair = factor * iq4_pair(tables, word >> (8 * i));
        w[0][i] = pair.x;
        w[1][i] = pair.y;
    }
}
#define decode_chunk(row, chunk, w) chunk_with(tables, row, chunk, w)

void decode_with(uint64_t tables, uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uint64_t codes;
    float factor;
    load_head(row, run / 4, codes, factor);
    bool upper = run % 4 >= 2;
    [[unroll]] for (int i = 0; i < 2; i++) {
        uint word = code_word(codes + run % 2 * 8 + 4 * i);
        [[unroll]] for (int j = 0; j < 4; j++) {
            vec2 pair = factor * iq4_pair(tables, word >> (8 * j));
            w[i][j] = upper ? pair.y : pair.x;
        }
    }
}
#define decode_run(row, run, w) decode_with(tables, row, run, w)
