// Keeps a card's clocks up while it waits: looks at a word again and again, and ends when it is not zero
// or after `looks` looks.
#include "common.glsl"

layout(local_size_x = 64) in;

layout(buffer_reference, std430, buffer_reference_align = 4) coherent volatile buffer Flag {
    uint stop;
    float unused;
};

layout(push_constant, std430) uniform Push {
    Flag flag;
    uint looks;
};

// Sums between two looks.
const uint SUMS = 128;

void main() {
    float x = float(gl_LocalInvocationID.x);
    for (uint look = 0; look < looks && flag.stop == 0; look++) {
        for (uint i = 0; i < SUMS; i++) x = fma(x, 0.5, 0.25);
    }
    // Never so, which the compiler does not know: the sums are not left out.
    if (x < 0.0) flag.unused = x;
}
