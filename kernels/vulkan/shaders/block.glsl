// The block type of this variant. A block file defines
//   BLOCK_ELEMENTS, BLOCK_BYTES   as the table of formats has them,
//   RUN, decode_run(row, run, w)  RUN elements from RUN * run on, next to each other: 16, 8, or 4 for
//                                 formats whose rows may be shorter than 8;
// and, where the order in which codes lie suggests another piece for a thread to take at a time (few
// elements, for then neighbouring lanes read neighbouring elements of x; more where a block's scales
// take long to decode),
//   CHUNK, decode_chunk(row, chunk, w), chunk_element(chunk, four): the column of the first of the
//   four elements in w[four].
// and, for products in whole numbers, where its codes have at most eight bits,
//   DOT_FOURS, dot_element(chunk, four): a chunk is DOT_FOURS times four elements, and where they lie;
//   RAW_WORDS, load_dot(row, chunk, raw): what a thread loads for one;
//   DOT_SPANS, decode_dot(raw, row, chunk, q, scale, least, f): its codes as signed bytes, DOT_FOURS words
//   in DOT_SPANS equal parts, in each of which an element is f.x * scale * (code - DOT_ZERO) + f.y * least;
//   DOT_TOGETHER: spans over which sums of scale * (code - DOT_ZERO) * 16319 fit 32 bits.
// `row` is the address of a row's first byte. Formats with a codebook take it from the push constant
// `tables` (src/tables.rs has its layout), which is declared further down than this file is included;
// so their decode_run is a macro that names it where it is used, and the default decode_chunk is too.
#include "words.glsl"
#include BLOCK_FILE

#ifndef CHUNK
#define CHUNK RUN
#define decode_chunk(row, chunk, w) decode_run(row, chunk, w)
uint chunk_element(uint chunk, uint four) { return chunk * RUN + four * 4; }
#endif

#ifndef DOT_ZERO
#define DOT_ZERO 0
#endif
#ifndef DOT_TOGETHER
#define DOT_TOGETHER DOT_SPANS
#endif

uint64_t row_address(uint64_t weights, uint row, uint cols) {
    return weights + uint64_t(row) * (cols / BLOCK_ELEMENTS * BLOCK_BYTES);
}
