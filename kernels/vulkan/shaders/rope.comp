// Turns each head of each row by its position; elements past the table's pairs stay as they are.
#include "common.glsl"
#include "turns.glsl"

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
    uint64_t table = turns_table(turns, pairs, form);
    uint i = HALVES ? pair : 2 * pair, j = HALVES ? pair + pairs : 2 * pair + 1;
    vec2 turned = turn_pair(table, pairs, position, pair, vec2(from.at[i], from.at[j]));
    to.at[i] = turned.x;
    to.at[j] = turned.y;
}
