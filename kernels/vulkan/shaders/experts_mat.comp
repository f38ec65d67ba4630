// Products of the pairs of each expert with its matrix: out[p][o] = x . w[o], where x is row p / top_k
// of x, or p itself; pairs grouped by expert as experts_group leaves them.
//
// A workgroup makes a tile of 64 outputs (x) by 64 pairs (y) of one expert (z). Each sum runs over the
// columns in order, whatever the number of pairs. Groups in y must be enough for the expert with the
// most pairs: rows of x / 64, rounded up.
#include "common.glsl"
#include "block.glsl"

layout(local_size_x = 256) in;
// Has each pair its own row of x?
layout(constant_id = 0) const bool X_OF_PAIR = false;

layout(push_constant, std430) uniform Push {
    // Addresses of the experts' matrices, each [rows, cols].
    uint64_t weights;
    uint64_t x;
    uint64_t out_;
    uint64_t tables;
    uint64_t first;
    uint64_t order;
    uint cols;
    uint rows;
    uint top_k;
};

#include "tile.glsl"

void main() {
    uint expert = gl_WorkGroupID.z, begin = Words(first).at[expert];
    uint count = Words(first).at[expert + 1] - begin;
    uint first_o = gl_WorkGroupID.x * TILE, first_p = gl_WorkGroupID.y * TILE;
    if (first_p >= count) return;
    Words pairs = Words(order + begin * 4);
    uint64_t matrix = Addresses(weights).at[expert];
    clear_sums();
    for (uint k = 0; k < cols; k += DEPTH) {
        load_w_tile(matrix, first_o, rows, cols, k);
        for (uint piece = gl_LocalInvocationIndex; piece < TILE * (DEPTH / 4); piece += 256) {
            uint element = k + piece_column(piece);
            vec4 v = vec4(0.0);
            if (element < cols) {
                uint pair = pairs.at[min(first_p + piece_row(piece), count - 1)];
                uint64_t at = uint64_t(X_OF_PAIR ? pair : pair / top_k) * cols + element;
                v = Floats4(x + at * 4).at[0];
            }
            put_x_tile(piece, v);
        }
        barrier();
        add_products();
        barrier();
    }
    uint tx = gl_LocalInvocationIndex % 16, ty = gl_LocalInvocationIndex / 16;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint p = first_p + ty + 16 * i;
        if (p >= count) continue;
        uint64_t to = uint64_t(pairs.at[p]) * rows;
        [[unroll]] for (uint j = 0; j < 4; j++) {
            uint o = first_o + tx + 16 * j;
            if (o < rows) Floats(out_ + (to + o) * 4).at[0] = sum[i][j];
        }
    }
}
