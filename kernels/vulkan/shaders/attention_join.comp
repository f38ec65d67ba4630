// Puts the splits of attention_vec together, in order: a workgroup takes one head of one row.
#include "common.glsl"

layout(local_size_x = 64) in;

layout(push_constant, std430) uniform Push {
    uint64_t partials;
    uint64_t out_;
    uint head_dim;
    uint heads;
    uint splits;
    uint first_row;
};

void main() {
    uint64_t at = uint64_t(first_row + gl_WorkGroupID.y) * heads + gl_WorkGroupID.x;
    uint record = head_dim + 4;
    uint64_t from = partials + at * splits * record * 4;
    float most = -1e30;
    for (uint s = 0; s < splits; s++)
        most = max(most, Floats(from + (uint64_t(s) * record + head_dim) * 4).at[0]);
    for (uint i = gl_LocalInvocationIndex; i < head_dim; i += 64) {
        float mixed = 0.0, total = 0.0;
        for (uint s = 0; s < splits; s++) {
            Floats part = Floats(from + uint64_t(s) * record * 4);
            float sum = part.at[head_dim + 1];
            // Splits that the row does not see hold nothing.
            if (sum == 0.0) continue;
            float factor = exp(part.at[head_dim] - most);
            mixed = fma(part.at[i], factor, mixed);
            total = fma(sum, factor, total);
        }
        Floats(out_ + (at * head_dim + i) * 4).at[0] = mixed / total;
    }
}
