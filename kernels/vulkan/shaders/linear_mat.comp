// Products with many rows of x: out[r][o] = x[r] . w[o] (+ bias[o]) (+ residual[r][o]), in f32.
//
// A workgroup of 16 x 16 threads makes a tile of 64 rows of x by 64 outputs; tiles of 32 columns of
// both go through shared memory. Each sum runs over the columns in order, whatever the number of rows.
#include "common.glsl"
#include "block.glsl"

layout(local_size_x = 256) in;

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
    // Elements between rows of the result: more than `rows` where this is a part of a wider matrix.
    uint stride;
    uint has_bias;
    uint has_residual;
};

const uint TILE = 64, DEPTH = 32;
// Column by column, one element wider than the tile: neighbouring threads hit different banks.
shared float w_tile[DEPTH][TILE + 1];
shared float x_tile[DEPTH][TILE + 1];

void main() {
    uint first_o = gl_WorkGroupID.x * TILE, first_r = gl_WorkGroupID.y * TILE;
    uint thread = gl_LocalInvocationIndex, tx = thread % 16, ty = thread / 16;
    float sum[4][4];
    [[unroll]] for (int i = 0; i < 4; i++) [[unroll]] for (int j = 0; j < 4; j++) sum[i][j] = 0.0;
    for (uint k = 0; k < cols; k += DEPTH) {
        for (uint piece = thread; piece < TILE * (DEPTH / RUN); piece += 256) {
            uint o = piece / (DEPTH / RUN), part = piece % (DEPTH / RUN);
            vec4 w[RUN / 4];
            uint element = k + part * RUN;
            if (element < cols) {
                uint at = min(first_o + o, rows - 1);
                decode_run(row_address(weights, at, cols), element / RUN, w);
            } else {
                [[unroll]] for (uint i = 0; i < RUN / 4; i++) w[i] = vec4(0.0);
            }
            [[unroll]] for (uint i = 0; i < RUN / 4; i++)
                [[unroll]] for (uint j = 0; j < 4; j++) w_tile[part * RUN + i * 4 + j][o] = w[i][j];
        }
        for (uint piece = thread; piece < TILE * (DEPTH / 4); piece += 256) {
            uint r = piece / (DEPTH / 4), element = k + piece % (DEPTH / 4) * 4;
            vec4 v = vec4(0.0);
            if (element < cols) {
                uint64_t at = uint64_t(min(first_r + r, columns - 1)) * cols + element;
                v = Floats4(x + at * 4).at[0];
            }
            [[unroll]] for (uint j = 0; j < 4; j++) x_tile[piece % (DEPTH / 4) * 4 + j][r] = v[j];
        }
        barrier();
        for (uint d = 0; d < DEPTH; d++) {
            float a[4], b[4];
            [[unroll]] for (uint i = 0; i < 4; i++) a[i] = x_tile[d][ty + 16 * i];
            [[unroll]] for (uint j = 0; j < 4; j++) b[j] = w_tile[d][tx + 16 * j];
            [[unroll]] for (uint i = 0; i < 4; i++)
                [[unroll]] for (uint j = 0; j < 4; j++) sum[i][j] = fma(a[i], b[j], sum[i][j]);
        }
        barrier();
    }
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint r = first_r + ty + 16 * i;
        [[unroll]] for (uint j = 0; j < 4; j++) {
            uint o = first_o + tx + 16 * j;
            if (r >= columns || o >= rows) continue;
            uint64_t at = uint64_t(r) * stride + o;
            float value = sum[i][j];
            if (has_bias != 0) value += Floats(bias + o * 4).at[0];
            if (has_residual != 0) value += Floats(residual + at * 4).at[0];
            Floats(out_ + at * 4).at[0] = value;
        }
    }
}
