// The head of Q4_K and Q5_K: `d`, `dmin`, then 12 bytes of six-bit scales and minimums of eight
// sub-blocks of 32 elements; and the order of their chunks, which are 16 bytes of codes: byte j of each
// 32 holds elements j (low half) and j + 32 (high half) of a quarter block.
#define CHUNK 32

uint chunk_element(uint chunk, uint four) {
    uint within = chunk % 8;
    return chunk / 8 * 256 + within / 2 * 64 + within % 2 * 16 + four % 4 * 4 + four / 4 * 32;
}

// Factors (x) and offsets (y) of sub-blocks 2 * quarter and 2 * quarter + 1.
void k_scales(uvec4 head, uint quarter, out vec2 factor, out vec2 offset) {
    vec2 d = unpackHalf2x16(head.x);
    // Two bytes of each word: scales, minimums, and the low halves of both for the upper sub-blocks.
    uvec3 two = head.yzw >> (quarter % 2 * 16);
    uint scale = two.x & 0x3f3f, least = two.y & 0x3f3f;
    if (quarter >= 2) {
        scale = (two.z & 0x0f0f) | ((two.x >> 2) & 0x3030);
        least = ((two.z >> 4) & 0x0f0f) | ((two.y >> 2) & 0x3030);
    }
    factor = d.x * bytes_of(scale).xy;
    offset = -d.y * bytes_of(least).xy;
}
