#include "common.glsl"
#include "matrices.glsl"
layout(local_size_x = 256) in;
const uint TILE_R = 128, TILE_O = 128, SUB_R = 64, SUB_O = 32, DEPTH = 32;
#define EDGE 16
layout(push_constant, std430) uniform Push {
    uint64_t weights;
    uint64_t x;
    uint64_t out_;
    uint64_t tables;
    uint64_t bias;
    uint64_t residual;
    uint cols;
    uint rows;
    uint columns;
    // Elements between rows of the result.
    uint stride;
    uint has_bias;
    uint has_residual;
};


const uint EIGHTS = DEPTH / 8;
const uint PITCH = EIGHTS + 1;
shared uvec4 x_tile[TILE_R * PITCH];
shared uvec4 w_tile[TILE_O * PITCH];
void main() {
    uint t = gl_LocalInvocationIndex;
    uint first_r = gl_WorkGroupID.y * TILE_R, first_o = gl_WorkGroupID.x * TILE_O;
    uint own_o = gl_SubgroupID % 4 * 32, own_r = gl_SubgroupID / 4 * 64;
    Sum(16) sums[8];
    [[unroll]] for (uint i = 0; i < 8; i++) sums[i] = Sum(16)(0.0);
    Words4 xa = Words4(x + (uint64_t(min(first_r + t / 4, columns - 1)) * cols + t % 4 * 8) * 2);
    Words4 xb = Words4(x + (uint64_t(min(first_r + 64 + t / 4, columns - 1)) * cols + t % 4 * 8) * 2);
    Words4 wa = Words4(weights + (uint64_t(min(first_o + t / 4, rows - 1)) * cols + t % 4 * 8) * 2);
    Words4 wb = Words4(weights + (uint64_t(min(first_o + 64 + t / 4, rows - 1)) * cols + t % 4 * 8) * 2);
    uint at = t / 4 * PITCH + t % 4;
    uvec4 x0 = xa.at[0], x1 = xb.at[0], w0 = wa.at[0], w1 = wb.at[0];
    uint steps = cols / DEPTH;
    for (uint k = 1; k <= steps; k++) {
        barrier();
        x_tile[at] = x0; x_tile[at + 64 * PITCH] = x1;
        w_tile[at] = w0; w_tile[at + 64 * PITCH] = w1;
        barrier();
        uint next = min(k, steps - 1) * 4;
        x0 = xa.at[next]; x1 = xb.at[next]; w0 = wa.at[next]; w1 = wb.at[next];
        [[unroll]] for (uint d = 0; d < 4; d += 2) {
            Left(16) left[4];
            [[unroll]] for (uint i = 0; i < 4; i++)
                coopMatLoad(left[i], x_tile, (own_r + i * 16) * PITCH + d, PITCH, ROWS_FIRST);
            [[unroll]] for (uint j = 0; j < 2; j++) {
                Right(16) right;
                coopMatLoad(right, w_tile, (own_o + j * 16) * PITCH + d, PITCH, COLUMNS_FIRST);
                [[unroll]] for (uint i = 0; i < 4; i++)
                    sums[i * 2 + j] = coopMatMulAdd(left[i], right, sums[i * 2 + j]);
            }
        }
    }
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint64_t to = uint64_t(first_r + own_r + i * 16) * stride + first_o + own_o;
        [[unroll]] for (uint j = 0; j < 2; j++)
            coopMatStore(sums[i * 2 + j], Floats(out_ + to * 4).at, j * 16, stride, ROWS_FIRST);
    }
}
