// Pages of a KV layer: page p holds keys, then values, each [kv_heads][page_tokens][head_dim], in
// halves or f32.

// The half precision number nearest to x, ties to even: the same bits on every driver.
uint half_bits(float x) {
    uint bits = floatBitsToUint(x), sign_bit = bits >> 16 & 0x8000u;
    uint size = bits & 0x7fffffffu;
    if (size >= 0x7f800000u) return sign_bit | (size > 0x7f800000u ? 0x7e00u : 0x7c00u);
    if (size >= 0x477ff000u) return sign_bit | 0x7c00u;
    if (size < 0x38800000u) {
        // Subnormal: in units of 2^-24, rounded by adding a number whose last bit is that unit.
        float rounded = uintBitsToFloat(size) + 0.5;
        return sign_bit | (floatBitsToUint(rounded) - floatBitsToUint(0.5));
    }
    uint odd = size >> 13 & 1;
    return sign_bit | ((size + 0xfffu + odd - 0x38000000u) >> 13);
}

// Elements before a token's key (value: plane += kv_heads) of a head.
uint64_t kv_element(uint page, uint plane, uint slot, uint kv_heads, uint page_tokens, uint head_dim) {
    return ((uint64_t(page) * 2 * kv_heads + plane) * page_tokens + slot) * head_dim;
}
