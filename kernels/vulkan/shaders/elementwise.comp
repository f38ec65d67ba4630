// One result for each element of a (and b), `count` of them. Workgroup (x, y) takes
// the 1024 from (y * groups in x + x) * 1024 on, a thread four of them. `out_` may be `a` or `b`.
#include "common.glsl"
#include "functions.glsl"

layout(local_size_x = 256) in;

// f(a) * b, f(a), a + b, a * factor, factor * tanh(a / factor).
#define GATE 0
#define ACTIVATION 1
#define ADD 2
#define SCALE 3
#define SOFT_CAP 4
layout(constant_id = 0) const uint KIND = GATE;
layout(constant_id = 1) const uint FUNCTION = SILU;

layout(push_constant, std430) uniform Push {
    uint64_t a;
    uint64_t b;
    uint64_t out_;
    uint count;
    float factor;
};

float result(float a, float b) {
    switch (KIND) {
    case GATE: return nonlinearity(FUNCTION, a) * b;
    case ACTIVATION: return nonlinearity(FUNCTION, a);
    case ADD: return a + b;
    case SCALE: return a * factor;
    default: return factor * bounded_tanh(a / factor);
    }
}

void main() {
    uint group = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    uint first = (group * 256 + gl_LocalInvocationIndex) * 4;
    if (first >= count) return;
    bool pair = KIND == GATE || KIND == ADD;
    uint64_t at = uint64_t(first) * 4;
    if (count - first >= 4) {
        vec4 left = Floats4(a + at).at[0], right = vec4(0.0), value;
        if (pair) right = Floats4(b + at).at[0];
        [[unroll]] for (int i = 0; i < 4; i++) value[i] = result(left[i], right[i]);
        Floats4(out_ + at).at[0] = value;
    } else {
        for (uint i = 0; i < count - first; i++) {
            float right = 0.0;
            if (pair) right = Floats(b + at).at[i];
            Floats(out_ + at).at[i] = result(Floats(a + at).at[i], right);
        }
    }
}
