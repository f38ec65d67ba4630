// Numbers and the places they come from as keys with a total order: the larger number first, the lower
// place first among equals, numbers before what is none. No two places have equal keys.

// Unsigned words in the order of the numbers; both zeros are equal.
uint order_bits(float value) {
    if (isnan(value)) return 0;
    uint bits = value == 0.0 ? 0 : floatBitsToUint(value);
    return (bits & 0x80000000) != 0 ? ~bits : bits | 0x80000000;
}

uint64_t order_key(float value, uint place) {
    return packUint2x32(uvec2(~place, order_bits(value)));
}

uint key_place(uint64_t key) { return ~unpackUint2x32(key).x; }
