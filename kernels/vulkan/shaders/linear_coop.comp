// Products with many rows of x: out[r][o] = x[r] . w[o] (+ bias[o]) (+ residual[r][o]), in products of
// halves with sums in f32.
//
// A workgroup makes a tile of TILE_R rows of x by TILE_O outputs, each of its subgroups SUB_R by SUB_O
// of them; tiles of DEPTH columns of both go through shared memory as halves, the next ones being read
// while these are multiplied. Each sum runs over the columns in order, whatever the number of rows.
#include "common.glsl"
#include "matrices.glsl"
#include "block.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint TILE_R = 128;
layout(constant_id = 2) const uint TILE_O = 128;
layout(constant_id = 3) const uint SUB_R = 64;
layout(constant_id = 4) const uint SUB_O = 32;
// Rows and columns of a cooperative matrix.
layout(constant_id = 5) const uint EDGE = 16;

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

const uint DEPTH = 32;
// Rows of tiles in units of four halves, a little apart so that neighbouring rows hit other banks.
const uint PITCH = DEPTH / 4 + 2;
const uint THREADS = gl_WorkGroupSize.x;
const uint X_FOURS = TILE_R * (DEPTH / 4) / THREADS;
const uint W_RUNS = TILE_O * (DEPTH / RUN) / THREADS;
const uint SUMS_R = SUB_R / EDGE, SUMS_O = SUB_O / EDGE;

shared f16vec4 x_tile[TILE_R * PITCH];
shared f16vec4 w_tile[TILE_O * PITCH];
// One matrix of sums for each subgroup.
shared float stage[TILE_R / SUB_R * (TILE_O / SUB_O) * EDGE * EDGE];

void main() {
    uint thread = gl_LocalInvocationIndex;
    uint first_r = gl_WorkGroupID.y * TILE_R, first_o = gl_WorkGroupID.x * TILE_O;
    uint own_o = gl_SubgroupID % (TILE_O / SUB_O) * SUB_O, own_r = gl_SubgroupID / (TILE_O / SUB_O) * SUB_R;
    Sum(EDGE) sums[SUMS_R][SUMS_O];
    [[unroll]] for (uint i = 0; i < SUMS_R; i++)
        [[unroll]] for (uint j = 0; j < SUMS_O; j++) sums[i][j] = Sum(EDGE)(0.0);

    f16vec4 x_next[X_FOURS];
    f16vec4 w_next[W_RUNS][RUN / 4];
    for (uint k = 0; k < cols + DEPTH; k += DEPTH) {
        if (k > 0) {
            barrier();
            [[unroll]] for (uint i = 0; i < X_FOURS; i++) {
                uint piece = i * THREADS + thread;
                x_tile[piece / (DEPTH / 4) * PITCH + piece % (DEPTH / 4)] = x_next[i];
            }
            [[unroll]] for (uint i = 0; i < W_RUNS; i++) {
                uint piece = i * THREADS + thread, o = piece / (DEPTH / RUN), part = piece % (DEPTH / RUN);
                [[unroll]] for (uint j = 0; j < RUN / 4; j++)
                    w_tile[o * PITCH + part * (RUN / 4) + j] = w_next[i][j];
            }
            barrier();
        }
        if (k < cols) {
            [[unroll]] for (uint i = 0; i < X_FOURS; i++) {
                uint piece = i * THREADS + thread;
                uint r = min(first_r + piece / (DEPTH / 4), columns - 1);
                uint element = k + piece % (DEPTH / 4) * 4;
                vec4 v = vec4(0.0);
                if (element < cols) v = Floats4(x + (uint64_t(r) * cols + element) * 4).at[0];
                x_next[i] = f16vec4(v);
            }
            [[unroll]] for (uint i = 0; i < W_RUNS; i++) {
                uint piece = i * THREADS + thread;
                uint o = min(first_o + piece / (DEPTH / RUN), rows - 1);
                uint element = k + piece % (DEPTH / RUN) * RUN;
                vec4 w[RUN / 4];
                [[unroll]] for (uint j = 0; j < RUN / 4; j++) w[j] = vec4(0.0);
                if (element < cols) decode_run(row_address(weights, o, cols), element / RUN, w);
                [[unroll]] for (uint j = 0; j < RUN / 4; j++) w_next[i][j] = f16vec4(w[j]);
            }
        }
        if (k == 0) continue;
        [[unroll]] for (uint d = 0; d < DEPTH; d += EDGE) {
            Right(EDGE) right[SUMS_O];
            [[unroll]] for (uint j = 0; j < SUMS_O; j++)
                coopMatLoad(right[j], w_tile, (own_o + j * EDGE) * PITCH + d / 4, PITCH, COLUMNS_FIRST);
            [[unroll]] for (uint i = 0; i < SUMS_R; i++) {
                Left(EDGE) left;
                coopMatLoad(left, x_tile, (own_r + i * EDGE) * PITCH + d / 4, PITCH, ROWS_FIRST);
                [[unroll]] for (uint j = 0; j < SUMS_O; j++)
                    sums[i][j] = coopMatMulAdd(left, right[j], sums[i][j]);
            }
        }
    }

    uint own = gl_SubgroupID * EDGE * EDGE;
    [[unroll]] for (uint i = 0; i < SUMS_R; i++) {
        [[unroll]] for (uint j = 0; j < SUMS_O; j++) {
            coopMatStore(sums[i][j], stage, own, EDGE, ROWS_FIRST);
            controlBarrier(gl_ScopeSubgroup, gl_ScopeSubgroup, gl_StorageSemanticsShared,
                           gl_SemanticsAcquireRelease);
            for (uint e = gl_SubgroupInvocationID; e < EDGE * EDGE; e += gl_SubgroupSize) {
                uint r = first_r + own_r + i * EDGE + e / EDGE;
                uint o = first_o + own_o + j * EDGE + e % EDGE;
                if (r < columns && o < rows) {
                    uint64_t at = uint64_t(r) * stride + o;
                    float value = stage[own + e];
                    if (has_bias != 0) value += Floats(bias + o * 4).at[0];
                    if (has_residual != 0) value += Floats(residual + at * 4).at[0];
                    Floats(out_ + at * 4).at[0] = value;
                }
            }
            controlBarrier(gl_ScopeSubgroup, gl_ScopeSubgroup, gl_StorageSemanticsShared,
                           gl_SemanticsAcquireRelease);
        }
    }
}
