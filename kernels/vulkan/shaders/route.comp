// Chooses experts: of each row of router logits [rows, experts], experts at most 1024, the top_k most
// probable, by falling probability and the lower number first on ties. `out_` is [rows, 2 * top_k]: their
// numbers, then their shares of the softmax over all experts (or over the chosen). Workgroup (x, y)
// takes row y * groups in x + x.
#include "common.glsl"
#include "workgroup.glsl"
#include "order.glsl"

layout(local_size_x = 256) in;
layout(constant_id = 0) const bool RENORMALISE = false;

layout(push_constant, std430) uniform Push {
    uint64_t logits;
    uint64_t out_;
    uint experts;
    uint top_k;
    uint rows;
};

const uint EXPERTS_MAX = 1024;
// Of four experts each; past the last one, what comes after all.
shared uvec4 keys[EXPERTS_MAX / 4];
shared float chosen[EXPERTS_MAX];
shared float most_of_subgroup[128];

void main() {
    uint row = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (row >= rows) return;
    uint thread = gl_LocalInvocationIndex;
    Floats from = Floats(logits + uint64_t(row) * experts * 4);
    Floats to = Floats(out_ + uint64_t(row) * top_k * 8);

    float most = uintBitsToFloat(0xff800000);
    for (uint e = thread; e < experts; e += 256) most = max(most, from.at[e]);
    most = subgroupMax(most);
    if (subgroupElect()) most_of_subgroup[gl_SubgroupID] = most;
    barrier();
    for (uint i = 0; i < gl_NumSubgroups; i++) most = max(most, most_of_subgroup[i]);

    float sum = 0.0;
    uint fours = (experts + 3) / 4;
    for (uint e = thread; e < fours * 4; e += 256) {
        uint key = 0;
        if (e < experts) {
            // Ties are those of the weights: of the distances to the largest logit, as they are rounded.
            float distance = from.at[e] - most;
            key = order_bits(distance);
            sum += exp(distance);
        }
        keys[e / 4][e % 4] = key;
    }
    float total = sum_all(sum);

    for (uint e = thread; e < experts; e += 256) {
        uint key = keys[e / 4][e % 4], rank = 0;
        for (uint i = 0; i < fours; i++) {
            uvec4 others = keys[i];
            // Those of equal keys with lower numbers come first.
            [[unroll]] for (uint j = 0; j < 4; j++)
                rank += others[j] > key || (others[j] == key && i * 4 + j < e) ? 1 : 0;
        }
        if (rank < top_k) {
            chosen[rank] = exp(from.at[e] - most);
            to.at[rank] = float(e);
        }
    }
    barrier();
    if (RENORMALISE) {
        total = 0.0;
        for (uint i = 0; i < top_k; i++) total += chosen[i];
    }
    for (uint i = thread; i < top_k; i += 256) to.at[top_k + i] = chosen[i] / total;
}
