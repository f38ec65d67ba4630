// The block type of this variant. A block file defines
//   BLOCK_ELEMENTS, BLOCK_BYTES   as the table of formats has them,
//   RUN, decode_run(row, run, w)  RUN elements from RUN * run on, next to each other: 16, or 4 for
//                                 formats whose rows may be shorter than 16;
// and, where the order in which codes lie suggests another piece for a thread to take at a time,
//   CHUNK, decode_chunk(row, chunk, w), chunk_element(chunk, four): the column of the first of the
//   four elements in w[four].
// `row` is the address of a row's first byte.
#include BLOCK_FILE

#ifndef CHUNK
#define CHUNK RUN
uint chunk_element(uint chunk, uint four) { return chunk * RUN + four * 4; }
void decode_chunk(uint64_t row, uint chunk, out vec4 w[CHUNK / 4]) { decode_run(row, chunk, w); }
#endif

uint64_t row_address(uint64_t weights, uint row, uint cols) {
    return weights + uint64_t(row) * (cols / BLOCK_ELEMENTS * BLOCK_BYTES);
}
