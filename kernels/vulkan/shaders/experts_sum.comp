// Adds up what the chosen experts made of each row, in the order of choice:
// out[r] = sum over c of share[r][c] * parts[r * top_k + c] (+ residual[r]). A workgroup takes 256
// columns (x) of one row (y).
#include "common.glsl"

layout(local_size_x = 256) in;

layout(push_constant, std430) uniform Push {
    uint64_t parts;
    // [rows, 2 * top_k]: numbers of experts, then shares.
    uint64_t route;
    uint64_t out_;
    uint64_t residual;
    uint width;
    uint top_k;
    uint has_residual;
};

void main() {
    uint column = gl_GlobalInvocationID.x, row = gl_WorkGroupID.y;
    if (column >= width) return;
    Floats shares = Floats(route + (uint64_t(row) * 2 + 1) * top_k * 4);
    float sum = 0.0;
    for (uint c = 0; c < top_k; c++) {
        uint64_t at = (uint64_t(row) * top_k + c) * width + column;
        sum = fma(shares.at[c], Floats(parts + at * 4).at[0], sum);
    }
    uint64_t at = uint64_t(row) * width + column;
    if (has_residual != 0) sum += Floats(residual + at * 4).at[0];
    Floats(out_ + at * 4).at[0] = sum;
}
