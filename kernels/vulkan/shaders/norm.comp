// Normalises each group of a row: (x - mean) / sqrt(variance + eps) * weight + bias; without the
// mean for the root mean square form. A workgroup takes one group; two passes over it, so that the
// variance is that of the centred values. Threads take whole vectors of four, then what is left.
#include "common.glsl"
#include "workgroup.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const bool CENTRED = false;
layout(constant_id = 2) const bool HAS_BIAS = false;
// Does every group begin on a boundary of four elements?
layout(constant_id = 3) const bool FOURS = false;

layout(push_constant, std430) uniform Push {
    uint64_t x;
    uint64_t weight;
    uint64_t bias;
    uint64_t out_;
    uint group;
    uint groups;
    float eps;
};

float total_of(vec4 v) { return (v.x + v.y) + (v.z + v.w); }

void main() {
    uint g = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (g >= groups) return;
    uint64_t from = x + uint64_t(g) * group * 4, to = out_ + uint64_t(g) * group * 4;
    uint lane = gl_LocalInvocationIndex, lanes = gl_WorkGroupSize.x;
    uint fours = FOURS ? group / 4 : 0, rest = 4 * fours + lane;
    float mean = 0.0;
    if (CENTRED) {
        vec4 sum = vec4(0.0);
        for (uint i = lane; i < fours; i += lanes) sum += Floats4(from).at[i];
        for (uint i = rest; i < group; i += lanes) sum.x += Floats(from).at[i];
        mean = sum_all(total_of(sum)) / float(group);
    }
    vec4 square = vec4(0.0);
    for (uint i = lane; i < fours; i += lanes) {
        vec4 v = Floats4(from).at[i] - mean;
        square = fma(v, v, square);
    }
    for (uint i = rest; i < group; i += lanes) {
        float v = Floats(from).at[i] - mean;
        square.x = fma(v, v, square.x);
    }
    float factor = inversesqrt(sum_all(total_of(square)) / float(group) + eps);
    for (uint i = lane; i < fours; i += lanes) {
        vec4 v = (Floats4(from).at[i] - mean) * factor * Floats4(weight).at[i];
        if (HAS_BIAS) v += Floats4(bias).at[i];
        Floats4(to).at[i] = v;
    }
    for (uint i = rest; i < group; i += lanes) {
        float v = (Floats(from).at[i] - mean) * factor * Floats(weight).at[i];
        if (HAS_BIAS) v += Floats(bias).at[i];
        Floats(to).at[i] = v;
    }
}
