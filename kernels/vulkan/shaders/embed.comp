// Looks up a row of a table for each row of the step: out[r] (+)= table[index[r]] * factor.
#include "common.glsl"
#include "block.glsl"

layout(local_size_x = 64) in;

layout(push_constant, std430) uniform Push {
    uint64_t weights;
    uint64_t indices;
    uint64_t out_;
    uint64_t tables;
    uint cols;
    // Row of `index` 0 in this part of the table, and how many rows the part has.
    uint first_row;
    uint rows;
    float factor;
    // Is the row added to what is there? Is row 0 taken whatever the index?
    uint accumulate;
    uint constant_index;
};

void main() {
    uint r = gl_WorkGroupID.x;
    uint index = constant_index != 0 ? 0 : Words(indices).at[r];
    if (index < first_row || index - first_row >= rows) return;
    uint64_t row = row_address(weights, index - first_row, cols);
    uint64_t target = out_ + uint64_t(r) * cols * 4;
    for (uint run = gl_LocalInvocationIndex; run < cols / RUN; run += gl_WorkGroupSize.x) {
        vec4 w[RUN / 4];
        decode_run(row, run, w);
        [[unroll]] for (uint i = 0; i < RUN / 4; i++) {
            Floats4 at = Floats4(target + (run * RUN + i * 4) * 4);
            vec4 value = w[i] * factor;
            at.at[0] = accumulate != 0 ? at.at[0] + value : value;
        }
    }
}
