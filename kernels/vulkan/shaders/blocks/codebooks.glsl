// Where the codebooks lie behind the address `tables`, in bytes; src/tables.rs makes them, and its test
// holds these numbers against it.
#define IQ1_S_GRID 0
#define IQ2_XXS_GRID 16384
#define IQ2_XS_GRID 18432
#define IQ2_S_GRID 22528
#define IQ3_XXS_GRID 30720
#define IQ3_S_GRID 31744
#define IQ4_PAIRS 33792

// Vector `index` of a codebook of vectors of eight, or of four, elements: signed bytes.
uvec2 vector_of_eight(uint64_t tables, uint grid, uint index) {
    return Words2(tables + (grid + index * 8)).at[0];
}
uint vector_of_four(uint64_t tables, uint grid, uint index) {
    return Words(tables + (grid + index * 4)).at[0];
}

// Seven bits of signs, and the eighth that makes the number of set bits even.
uint even_signs(uint bits) {
    uint seven = bits & 127;
    return seven | (uint(bitCount(seven)) & 1) << 7;
}

// d times four elements, negative where one of the low four bits of `signs` is set.
vec4 signed_four(uint elements, uint signs, float d) {
    return bytes_of(elements) * (d - 2.0 * d * vec4((uvec4(signs) >> uvec4(0, 1, 2, 3)) & 1));
}

// Four-bit codes to the values of IQ4: two codes in a byte, of which the low half's comes first.
vec2 iq4_pair(uint64_t tables, uint code) {
    return unpackHalf2x16(Words(tables + (IQ4_PAIRS + (code & 255) * 4)).at[0]);
}
