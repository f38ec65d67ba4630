// Rows of x by number, or one for each sequence: out is [outputs, width]. A workgroup takes 64 columns
// (x) of one output row (y).
#include "common.glsl"

layout(local_size_x = 64) in;

#define SELECT 0
#define FIRST 1
#define LAST 2
#define MEAN 3
layout(constant_id = 0) const uint KIND = SELECT;

layout(push_constant, std430) uniform Push {
    uint64_t x;
    // SELECT: a row number (u32) for each output row. Else sequences, six words each, of which the
    // first two are its first row in x and its number of rows (at least one).
    uint64_t numbers;
    uint64_t out_;
    uint width;
};

float x_at(uint row, uint column) {
    return Floats(x + (uint64_t(row) * width + column) * 4).at[0];
}

void main() {
    uint column = gl_GlobalInvocationID.x, output_row = gl_WorkGroupID.y;
    if (column >= width) return;
    float value;
    if (KIND == SELECT) {
        value = x_at(Words(numbers).at[output_row], column);
    } else {
        uint first = Words(numbers).at[output_row * 6], count = Words(numbers).at[output_row * 6 + 1];
        if (KIND == MEAN) {
            value = 0.0;
            for (uint i = 0; i < count; i++) value += x_at(first + i, column);
            value /= float(count);
        } else {
            value = x_at(KIND == LAST ? first + count - 1 : first, column);
        }
    }
    Floats(out_ + (uint64_t(output_row) * width + column) * 4).at[0] = value;
}
