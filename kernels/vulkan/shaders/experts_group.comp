// Sorts the pairs (row, choice) by expert, pairs of one expert in their order: `order` lists the pairs
// (row * top_k + choice), `first` says for each expert where its pairs begin there, and after the last
// expert the number of pairs. Workgroup e does what concerns expert e.
#include "common.glsl"
#include "workgroup.glsl"

layout(local_size_x = 256) in;

layout(push_constant, std430) uniform Push {
    // [rows, 2 * top_k]: numbers of experts, then shares.
    uint64_t route;
    uint64_t first;
    uint64_t order;
    uint rows;
    uint top_k;
};

uint expert_of(uint pair) {
    return uint(Floats(route + (uint64_t(pair / top_k) * top_k * 2 + pair % top_k) * 4).at[0]);
}

void main() {
    uint expert = gl_WorkGroupID.x, pairs = rows * top_k;
    // A thread takes neighbouring pairs, so that counts of the threads before it give its place.
    uint share = (pairs + 255) / 256;
    uint begin = min(gl_LocalInvocationIndex * share, pairs), end = min(begin + share, pairs);
    uint lower = 0, own = 0;
    for (uint pair = begin; pair < end; pair++) {
        uint number = expert_of(pair);
        lower += number < expert ? 1 : 0;
        own += number == expert ? 1 : 0;
    }
    uint before;
    uint place = count_all(lower, before);
    count_all(own, before);
    if (gl_LocalInvocationIndex == 0) {
        Words(first).at[expert] = place;
        if (expert == gl_NumWorkGroups.x - 1) Words(first).at[expert + 1] = pairs;
    }
    place += before;
    for (uint pair = begin; pair < end; pair++)
        if (expert_of(pair) == expert) Words(order).at[place++] = pair;
}
