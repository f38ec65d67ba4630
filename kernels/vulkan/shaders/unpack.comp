// A matrix of codes as halves, row after row. Workgroups (x, y) are (256 runs of a row, rows from
// y * ROWS on).
#include "common.glsl"
#include "block.glsl"

layout(local_size_x = 256) in;

layout(push_constant, std430) uniform Push {
    uint64_t weights;
    uint64_t out_;
    uint64_t tables;
    uint cols;
    uint rows;
};

void main() {
    uint run = gl_WorkGroupID.x * 256 + gl_LocalInvocationIndex, row = gl_WorkGroupID.y;
    if (run >= cols / RUN) return;
    vec4 w[RUN / 4];
    decode_run(row_address(weights, row, cols), run, w);
    uint64_t to = out_ + (uint64_t(row) * cols + run * RUN) * 2;
    [[unroll]] for (uint i = 0; i < RUN / 4; i++)
        Words2(to + i * 8).at[0] = uvec2(packHalf2x16(w[i].xy), packHalf2x16(w[i].zw));
}
