// `d`, a word of fifth bits, 16 bytes of codes: d * (q - 16). Blocks lie on 2-byte boundaries.
#define BLOCK_BYTES 22
#define FIFTH_BITS

void load_block(uint64_t block, out uvec4 codes, out uint fifth, out float factor, out float offset) {
    Words from = aligned_words(block);
    bool odd = misaligned_bits(block) != 0;
    uint word[6];
    [[unroll]] for (int i = 0; i < 6; i++) word[i] = from.at[i];
    uint words[5];
    [[unroll]] for (int i = 0; i < 5; i++)
        words[i] = odd ? word[i + 1] : (word[i] >> 16) | (word[i + 1] << 16);
    fifth = words[0];
    codes = uvec4(words[1], words[2], words[3], words[4]);
    factor = half_value(odd ? word[0] >> 16 : word[0] & 0xffff);
    offset = -16.0 * factor;
}

#include "blocks/nibbles.glsl"
