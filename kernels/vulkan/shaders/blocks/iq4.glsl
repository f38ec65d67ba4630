// 32 elements of IQ4: byte j of 16 holds the codes of elements j and j + 16. The including file defines
// load_block(row, number, codes, factor) for the 32 elements from 32 * number on.
#define RUN 16
#define CHUNK 32

uint chunk_element(uint chunk, uint four) { return chunk * 32 + four * 4; }

void chunk_with(uint64_t tables, uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) {
    uvec4 codes;
    float factor;
    load_block(row, chunk, codes, factor);
    [[unroll]] for (int i = 0; i < 4; i++) {
        vec4 low, high;
        iq4_values(tables, codes[i], low, high);
        w[i] = factor * low;
        w[4 + i] = factor * high;
    }
}
#define decode_chunk(row, chunk, w) chunk_with(tables, row, chunk, w)

void decode_with(uint64_t tables, uint64_t row, uint run, out vec4 w[RUN / 4]) {
    uvec4 codes;
    float factor;
    load_block(row, run / 2, codes, factor);
    bool upper = run % 2 == 1;
    [[unroll]] for (int i = 0; i < 4; i++) {
        vec4 low, high;
        iq4_values(tables, codes[i], low, high);
        w[i] = factor * (upper ? high : low);
    }
}
#define decode_run(row, run, w) decode_with(tables, row, run, w)
