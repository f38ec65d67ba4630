// Four-bit floating point codes (sign, two bits of exponent, one of mantissa) become half precision
// numbers by moving their bits in place, which makes them 2^14 times too small.
#define E2M1_FACTOR 16384.0

// The values of the codes in the low four bits of both halves of a word, divided by E2M1_FACTOR.
vec2 e2m1_pair(uint codes) {
    return unpackHalf2x16(((codes & 0x00080008) << 12) | ((codes & 0x00070007) << 9));
}

// The same of four codes, in the low four bits of the bytes of a word.
vec4 e2m1_four(uint codes) {
    vec2 even = e2m1_pair(codes), odd = e2m1_pair(codes >> 8);
    return vec4(even.x, odd.x, even.y, odd.y);
}
