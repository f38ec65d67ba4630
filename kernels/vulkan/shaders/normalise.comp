// Divides each row by its length; a row of zeros stays as it is. Workgroup (x, y) takes row
// y * groups in x + x.
#include "common.glsl"
#include "workgroup.glsl"

layout(local_size_x = 256) in;

layout(push_constant, std430) uniform Push {
    uint64_t x;
    uint64_t out_;
    uint width;
    uint rows;
};

void main() {
    uint row = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (row >= rows) return;
    uint64_t from = x + uint64_t(row) * width * 4, to = out_ + uint64_t(row) * width * 4;
    float square = 0.0;
    for (uint i = gl_LocalInvocationIndex; i < width; i += 256) {
        float v = Floats(from + i * 4).at[0];
        square = fma(v, v, square);
    }
    float sum = sum_all(square), factor = sum > 0.0 ? 1.0 / sqrt(sum) : 0.0;
    for (uint i = gl_LocalInvocationIndex; i < width; i += 256)
        Floats(to + i * 4).at[0] = Floats(from + i * 4).at[0] * factor;
}
