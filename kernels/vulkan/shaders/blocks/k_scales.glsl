// The head of Q4_K and Q5_K: `d`, `dmin`, then 12 bytes of six-bit scales and minimums of eight
// sub-blocks of 32 elements; and the order of their chunks, which are 16 bytes of codes: byte j of each
// 32 holds elements j (low half) and j + 32 (high half) of a quarter block.
#define CHUNK 32

uint chunk_element(uint chunk, uint four) {
    uint within = chunk % 8;
    return chunk / 8 * 256 + within / 2 * 64 + within % 2 * 16 + four % 4 * 4 + four / 4 * 32;
}

// Scales and minimums of sub-blocks 2 * quarter and 2 * quarter + 1, in two bytes each.
void k_bytes(uvec4 head, uint quarter, out uint scale, out uint least) {
    // Two bytes of each word: scales, minimums, and the low halves of both for the upper sub-blocks,
    // whose high bits are the highest of the lower ones' bytes. Nothing but `head` differs from row to
    // row, so that the shifts and masks are made once.
    bool upper = quarter >= 2;
    uint at = quarter % 2 * 16, high = upper ? at + 2 : at;
    uint high_mask = upper ? 0x3030 : 0x3f3f, low_mask = upper ? 0x0f0f : 0;
    scale = ((head.y >> high) & high_mask) | ((head.w >> at) & low_mask);
    least = ((head.z >> high) & high_mask) | ((head.w >> (at + 4)) & low_mask);
}

// Factors (x) and offsets (y) of the same.
void k_scales(uvec4 head, uint quarter, out vec2 factor, out vec2 offset) {
    uint scale, least;
    k_bytes(head, quarter, scale, least);
    vec2 d = unpackHalf2x16(head.x);
    factor = d.x * bytes_of(scale).xy;
    offset = -d.y * bytes_of(least).xy;
}

// Integer products: the chunks of decode_chunk, whose two halves have a scale and a minimum each.
#define DOT_FOURS 8
#define DOT_SPANS 2
#define dot_element chunk_element

// They are in the first four words of `raw`.
#define k_dot(raw, quarter, scale, least, f) { \
    uint scales, minimums; \
    k_bytes(uvec4(raw[0], raw[1], raw[2], raw[3]), quarter, scales, minimums); \
    scale = int[2](int(scales & 255), int(scales >> 8)); \
    least = int[2](int(minimums & 255), int(minimums >> 8)); \
    vec2 d = unpackHalf2x16(raw[0]); \
    f = vec2(d.x, -d.y); \
}
