// Rope tables in two steps: position % 256, then position / 256, whose turns multiply.

layout(buffer_reference, std430, buffer_reference_align = 8) buffer Turn { vec2 at[]; };

const uint FINE = 256, COARSE = 4096;

// The table of a sequence's form (0: short, 1: long).
uint64_t turns_table(uint64_t turns, uint pairs, uint form) {
    return turns + uint64_t(form) * (FINE + COARSE) * pairs * 8;
}

// Two elements turned by a pair's angle at a position.
vec2 turn_pair(uint64_t table, uint pairs, uint position, uint pair, vec2 x) {
    vec2 fine = Turn(table).at[position % FINE * pairs + pair];
    vec2 coarse = Turn(table).at[(FINE + min(position / FINE, COARSE - 1)) * pairs + pair];
    float cosine = fma(fine.x, coarse.x, -fine.y * coarse.y);
    float sine = fma(fine.y, coarse.x, fine.x * coarse.y);
    return vec2(fma(x.x, cosine, -x.y * sine), fma(x.x, sine, x.y * cosine));
}
