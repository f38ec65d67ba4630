// Turns each head of each row by its position; elements past the table's pairs stay as they are.
// The table is in two steps (position / 256 and position % 256), whose turns multiply.
#include "common.glsl"

layout(local_size_x = 64) in;
layout(constant_id = 0) const bool HALVES = false;

layout(push_constant, std430) uniform Push {
    uint64_t x;
    uint64_t turns;
    uint64_t positions;
    uint64_t row_sequences;
    uint64_t sequences;
    uint64_t out_;
    uint heads;
    uint head_dim;
    uint pairs;
    uint has_long;
};

layout(buffer_reference, std430, buffer_reference_align = 8) buffer Turn { vec2 at[]; };

const uint FINE = 256, COARSE = 4096;

void main() {
    uint row = gl_WorkGroupID.y;
    uint within = gl_WorkGroupID.x * 64 + gl_LocalInvocationIndex;
    // Threads take pairs of elements; those past the turned ones copy.
    uint halves = (head_dim + 1) / 2;
    if (within >= heads * halves) return;
    uint head = within / halves, pair = within % halves;
    uint64_t base = (uint64_t(row) * heads + head) * head_dim * 4;
    Floats from = Floats(x + base), to = Floats(out_ + base);
    if (pair >= pairs) {
        uint first = 2 * pair;
        to.at[first] = from.at[first];
        if (first + 1 < head_dim) to.at[first + 1] = from.at[first + 1];
        return;
    }
    uint position = Words(positions).at[row];
    uint sequence = Words(row_sequences).at[row];
    uint form = has_long != 0 ? Words(sequences).at[sequence * 6 + 5] : 0;
    Turn table = Turn(turns + uint64_t(form) * (FINE + COARSE) * pairs * 8);
    vec2 fine = table.at[position % FINE * pairs + pair];
    vec2 coarse = table.at[(FINE + min(position / FINE, COARSE - 1)) * pairs + pair];
    float cosine = fma(fine.x, coarse.x, -fine.y * coarse.y);
    float sine = fma(fine.y, coarse.x, fine.x * coarse.y);
    uint i = HALVES ? pair : 2 * pair, j = HALVES ? pair + pairs : 2 * pair + 1;
    float a = from.at[i], b = from.at[j];
    to.at[i] = fma(a, cosine, -b * sine);
    to.at[j] = fma(a, sine, b * cosine);
}
