// Normalises each group of a row: (x - mean) / sqrt(variance + eps) * weight + bias; without the
// mean for the root mean square form. A workgroup takes one group; two passes over it, so that the
// variance is that of the centred values.
#include "common.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const bool CENTRED = false;
layout(constant_id = 2) const bool HAS_BIAS = false;

layout(push_constant, std430) uniform Push {
    uint64_t x;
    uint64_t weight;
    uint64_t bias;
    uint64_t out_;
    uint group;
    uint groups;
    float eps;
};

shared float partial[128];

// Sum over the workgroup, in an order that depends on the subgroup's size alone.
float sum_all(float value) {
    float part = subgroupAdd(value);
    if (subgroupElect()) partial[gl_SubgroupID] = part;
    barrier();
    float total = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++) total += partial[i];
    barrier();
    return total;
}

void main() {
    uint g = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (g >= groups) return;
    uint64_t from = x + uint64_t(g) * group * 4, to = out_ + uint64_t(g) * group * 4;
    uint lane = gl_LocalInvocationIndex, lanes = gl_WorkGroupSize.x;
    float mean = 0.0;
    if (CENTRED) {
        float sum = 0.0;
        for (uint i = lane; i < group; i += lanes) sum += Floats(from + i * 4).at[0];
        mean = sum_all(sum) / float(group);
    }
    float square = 0.0;
    for (uint i = lane; i < group; i += lanes) {
        float v = Floats(from + i * 4).at[0] - mean;
        square = fma(v, v, square);
    }
    float factor = inversesqrt(sum_all(square) / float(group) + eps);
    for (uint i = lane; i < group; i += lanes) {
        float v = (Floats(from + i * 4).at[0] - mean) * factor * Floats(weight + i * 4).at[0];
        if (HAS_BIAS) v += Floats(bias + i * 4).at[0];
        Floats(to + i * 4).at[0] = v;
    }
}
