// Eight f32 numbers as halves: `count` of such eights. Workgroup (x, y) takes the 256 from
// (y * groups in x + x) * 256 on.
#include "common.glsl"

layout(local_size_x = 256) in;

layout(push_constant, std430) uniform Push {
    uint64_t x;
    uint64_t out_;
    uint count;
};

void main() {
    uint group = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    uint i = group * 256 + gl_LocalInvocationIndex;
    if (i >= count) return;
    vec4 a = Floats4(x + uint64_t(i) * 32).at[0], b = Floats4(x + uint64_t(i) * 32).at[1];
    Words4(out_ + uint64_t(i) * 16).at[0] =
        uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
}
