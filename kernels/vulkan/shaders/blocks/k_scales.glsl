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
    uint shift = quarter % 2 * 16;
    uvec2 s = uvec2(head.y >> shift, head.y >> (shift + 8));
    uvec2 m = uvec2(head.z >> shift, head.z >> (shift + 8));
    uvec2 rest = uvec2(head.w >> shift, head.w >> (shift + 8));
    bool first = quarter < 2;
    uvec2 scale = first ? s & 63 : (rest & 15) | ((s >> 2) & 48);
    uvec2 least = first ? m & 63 : ((rest >> 4) & 15) | ((m >> 2) & 48);
    factor = d.x * vec2(scale);
    offset = -d.y * vec2(least);
}
