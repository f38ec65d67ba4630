// Products with many rows of x: out[r][o] = x[r] . w[o] (+ bias[o]) (+ residual[r][o]), in products of
// halves with sums in f32. x is halves already (to_half); so are the weights where PLAIN is defined
// (unpack), else they are decoded here.
//
// A workgroup makes a tile of TILE_R rows of x by TILE_O outputs, each of its subgroups SUB_R by SUB_O
// of them; tiles of DEPTH columns of both go through shared memory, the next ones being read while
// these are multiplied. Each sum runs over the columns in order, whatever the number of rows.
#include "common.glsl"
#include "matrices.glsl"
#ifndef PLAIN
#include "block.glsl"
#endif

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint TILE_R = 128;
layout(constant_id = 2) const uint TILE_O = 128;
layout(constant_id = 3) const uint SUB_R = 64;
layout(constant_id = 4) const uint SUB_O = 32;
// Rows and columns of a cooperative matrix.
layout(constant_id = 5) const uint EDGE = 16;
// Columns of a tile: 32 or 64.
layout(constant_id = 6) const uint DEPTH = 32;
// Do tiles cover rows and outputs exactly, and is there no bias?
layout(constant_id = 7) const bool WHOLE = false;

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

// Eight halves at a time; rows of tiles are one such apart, so that neighbouring rows hit other banks.
const uint EIGHTS = DEPTH / 8;
const uint PITCH = EIGHTS + 1;
const uint THREADS = gl_WorkGroupSize.x;
#ifdef PLAIN
#define PIECE 8
#else
#define PIECE (RUN < 8 ? 8 : RUN)
#endif
const uint X_PIECES = TILE_R * EIGHTS / THREADS;
const uint W_PIECES = TILE_O * (DEPTH / PIECE) / THREADS;
const uint SUMS_R = SUB_R / EDGE, SUMS_O = SUB_O / EDGE;

shared uvec4 x_tile[TILE_R * PITCH];
shared uvec4 w_tile[TILE_O * PITCH];
// One matrix of sums for each subgroup.
shared float stage[TILE_R / SUB_R * (TILE_O / SUB_O) * EDGE * EDGE];

uvec4 x_next[X_PIECES];
uvec4 w_next[W_PIECES][PIECE / 8];

#ifndef PLAIN
uvec4 halves(vec4 a, vec4 b) {
    return uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
}
#endif

// Begins to read the tiles at column k.
void load(uint first_r, uint first_o, uint k) {
    [[unroll]] for (uint i = 0; i < X_PIECES; i++) {
        uint piece = i * THREADS + gl_LocalInvocationIndex;
        uint r = min(first_r + piece / EIGHTS, columns - 1), element = k + piece % EIGHTS * 8;
        x_next[i] = uvec4(0);
        if (element < cols) x_next[i] = Words4(x + (uint64_t(r) * cols + element) * 2).at[0];
    }
    [[unroll]] for (uint i = 0; i < W_PIECES; i++) {
        uint piece = i * THREADS + gl_LocalInvocationIndex;
        uint o = min(first_o + piece / (DEPTH / PIECE), rows - 1), element = k + piece % (DEPTH / PIECE) * PIECE;
        [[unroll]] for (uint j = 0; j < PIECE / 8; j++) w_next[i][j] = uvec4(0);
        if (element >= cols) continue;
#ifdef PLAIN
        w_next[i][0] = Words4(weights + (uint64_t(o) * cols + element) * 2).at[0];
#else
        uint64_t row = row_address(weights, o, cols);
        vec4 w[PIECE / 4];
#if RUN < 8
        vec4 part[RUN / 4];
        [[unroll]] for (uint j = 0; j < PIECE / RUN; j++) {
            decode_run(row, element / RUN + j, part);
            w[j] = part[0];
        }
#else
        decode_run(row, element / RUN, w);
#endif
        [[unroll]] for (uint j = 0; j < PIECE / 8; j++) w_next[i][j] = halves(w[2 * j], w[2 * j + 1]);
#endif
    }
}

void store() {
    [[unroll]] for (uint i = 0; i < X_PIECES; i++) {
        uint piece = i * THREADS + gl_LocalInvocationIndex;
        x_tile[piece / EIGHTS * PITCH + piece % EIGHTS] = x_next[i];
    }
    [[unroll]] for (uint i = 0; i < W_PIECES; i++) {
        uint piece = i * THREADS + gl_LocalInvocationIndex;
        uint at = piece / (DEPTH / PIECE) * PITCH + piece % (DEPTH / PIECE) * (PIECE / 8);
        [[unroll]] for (uint j = 0; j < PIECE / 8; j++) w_tile[at + j] = w_next[i][j];
    }
}

void subgroup_fence() {
    controlBarrier(gl_ScopeSubgroup, gl_ScopeSubgroup, gl_StorageSemanticsShared, gl_SemanticsAcquireRelease);
}

// Writes the matrix that the subgroup left at `own` of the stage, as far as it lies inside.
void put(uint own, uint first_r, uint first_o) {
    subgroup_fence();
    for (uint e = gl_SubgroupInvocationID; e < EDGE * EDGE; e += gl_SubgroupSize) {
        uint r = first_r + e / EDGE, o = first_o + e % EDGE;
        if (r < columns && o < rows) {
            uint64_t at = uint64_t(r) * stride + o;
            float value = stage[own + e];
            if (has_bias != 0) value += Floats(bias + o * 4).at[0];
            if (has_residual != 0) value += Floats(residual + at * 4).at[0];
            Floats(out_ + at * 4).at[0] = value;
        }
    }
    subgroup_fence();
}

void main() {
    uint first_r = gl_WorkGroupID.y * TILE_R, first_o = gl_WorkGroupID.x * TILE_O;
    uint own_o = gl_SubgroupID % (TILE_O / SUB_O) * SUB_O, own_r = gl_SubgroupID / (TILE_O / SUB_O) * SUB_R;
    // One row of matrices after another.
    Sum(EDGE) sums[SUMS_R * SUMS_O];
    [[unroll]] for (uint i = 0; i < SUMS_R * SUMS_O; i++) sums[i] = Sum(EDGE)(0.0);
    if (WHOLE && has_residual != 0) {
        [[unroll]] for (uint i = 0; i < SUMS_R; i++) {
            uint64_t at = uint64_t(first_r + own_r + i * EDGE) * stride + first_o + own_o;
            [[unroll]] for (uint j = 0; j < SUMS_O; j++)
                coopMatLoad(sums[i * SUMS_O + j], Floats(residual + at * 4).at, j * EDGE, stride, ROWS_FIRST);
        }
    }

    load(first_r, first_o, 0);
    for (uint k = 0; k < cols; k += DEPTH) {
        barrier();
        store();
        barrier();
        load(first_r, first_o, k + DEPTH);
        [[unroll]] for (uint d = 0; d < EIGHTS; d += EDGE / 8) {
            Left(EDGE) left[SUMS_R];
            [[unroll]] for (uint i = 0; i < SUMS_R; i++)
                coopMatLoad(left[i], x_tile, (own_r + i * EDGE) * PITCH + d, PITCH, ROWS_FIRST);
            [[unroll]] for (uint j = 0; j < SUMS_O; j++) {
                Right(EDGE) right;
                coopMatLoad(right, w_tile, (own_o + j * EDGE) * PITCH + d, PITCH, COLUMNS_FIRST);
                [[unroll]] for (uint i = 0; i < SUMS_R; i++)
                    sums[i * SUMS_O + j] = coopMatMulAdd(left[i], right, sums[i * SUMS_O + j]);
            }
        }
    }

    if (WHOLE) {
        [[unroll]] for (uint i = 0; i < SUMS_R; i++) {
            uint64_t at = uint64_t(first_r + own_r + i * EDGE) * stride + first_o + own_o;
            [[unroll]] for (uint j = 0; j < SUMS_O; j++)
                coopMatStore(sums[i * SUMS_O + j], Floats(out_ + at * 4).at, j * EDGE, stride, ROWS_FIRST);
        }
        return;
    }
    // Each matrix by its literal number: a loop with barriers in it makes NVIDIA's driver keep all of
    // them in memory, also while they are summed.
    uint own = gl_SubgroupID * EDGE * EDGE, at_r = first_r + own_r, at_o = first_o + own_o;
#define STORE(n) \
    if (n < SUMS_R * SUMS_O) { \
        coopMatStore(sums[n], stage, own, EDGE, ROWS_FIRST); \
        put(own, at_r + n / SUMS_O * EDGE, at_o + n % SUMS_O * EDGE); \
    }
    STORE(0) STORE(1) STORE(2) STORE(3) STORE(4) STORE(5) STORE(6) STORE(7)
    STORE(8) STORE(9) STORE(10) STORE(11) STORE(12) STORE(13) STORE(14) STORE(15)
}
