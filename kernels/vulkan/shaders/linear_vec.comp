// Products with a few rows of x: out[r][o] = x[r] . w[o] (+ bias[o]) (+ residual[r][o]).
//
// A subgroup takes ROWS rows of the matrix, its lanes take chunks of them in turn; so each weight is
// read once for COLUMNS rows of x. The order of every sum depends on the subgroup's size alone: a row
// of x has bitwise the same result alone and among others.
#include "common.glsl"
#include "block.glsl"
#include "functions.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 2;
layout(constant_id = 2) const uint COLUMNS = 1;
// Is the result f(x . w) * (x . w_up)?
layout(constant_id = 3) const bool GATED = false;
layout(constant_id = 4) const uint FUNCTION = 0;
// Is x scaled by `scale` elementwise and divided by its root mean square?
layout(constant_id = 5) const bool NORM = false;

layout(push_constant, std430) uniform Push {
    uint64_t weights;
    uint64_t x;
    uint64_t out_;
    uint64_t tables;
    uint64_t up;
    uint64_t scale;
    uint64_t bias;
    uint64_t residual;
    uint cols;
    uint rows;
    uint columns;
    // Elements between rows of the result: more than `rows` where this is a part of a wider matrix.
    uint stride;
    float eps;
    uint has_bias;
    uint has_residual;
};

const uint PARTS = GATED ? 2 : 1;

void main() {
    uint subgroup = gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID;
    uint first = subgroup * ROWS;
    if (first >= rows) return;
    uint column = gl_WorkGroupID.y * COLUMNS;
    float sum[2][ROWS][COLUMNS];
    float square[COLUMNS];
    [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
        square[c] = 0.0;
        [[unroll]] for (uint p = 0; p < PARTS; p++)
            [[unroll]] for (uint r = 0; r < ROWS; r++) sum[p][r][c] = 0.0;
    }
    uint64_t row[2][ROWS];
    [[unroll]] for (uint r = 0; r < ROWS; r++) {
        // Rows past the end repeat the last one; their sums are not stored.
        uint at = min(first + r, rows - 1);
        row[0][r] = row_address(weights, at, cols);
        row[1][r] = row_address(up, at, cols);
    }
    for (uint chunk = gl_SubgroupInvocationID; chunk < cols / CHUNK; chunk += gl_SubgroupSize) {
        vec4 v[COLUMNS][CHUNK / 4];
        [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
            uint64_t values = x + uint64_t(min(column + c, columns - 1)) * cols * 4;
            [[unroll]] for (uint i = 0; i < CHUNK / 4; i++) {
                uint element = chunk_element(chunk, i);
                v[c][i] = Floats4(values + element * 4).at[0];
                if (NORM) {
                    vec4 s = v[c][i];
                    square[c] = fma(s.x, s.x, fma(s.y, s.y, fma(s.z, s.z, fma(s.w, s.w, square[c]))));
                    v[c][i] = s * Floats4(scale + element * 4).at[0];
                }
            }
        }
        [[unroll]] for (uint p = 0; p < PARTS; p++) {
            [[unroll]] for (uint r = 0; r < ROWS; r++) {
                vec4 w[CHUNK / 4];
                decode_chunk(row[p][r], chunk, w);
                [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
                    float s = sum[p][r][c];
                    [[unroll]] for (uint i = 0; i < CHUNK / 4; i++) {
                        s = fma(w[i].x, v[c][i].x, s);
                        s = fma(w[i].y, v[c][i].y, s);
                        s = fma(w[i].z, v[c][i].z, s);
                        s = fma(w[i].w, v[c][i].w, s);
                    }
                    sum[p][r][c] = s;
                }
            }
        }
    }
    [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
        float factor = 1.0;
        if (NORM) factor = inversesqrt(subgroupAdd(square[c]) / float(cols) + eps);
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            float value = subgroupAdd(sum[0][r][c]) * factor;
            if (GATED) value = nonlinearity(FUNCTION, value) * (subgroupAdd(sum[1][r][c]) * factor);
            uint o = first + r;
            if (subgroupElect() && o < rows && column + c < columns) {
                uint64_t at = uint64_t(column + c) * stride + o;
                if (has_bias != 0) value += Floats(bias + o * 4).at[0];
                if (has_residual != 0) value += Floats(residual + at * 4).at[0];
                Floats(out_ + at * 4).at[0] = value;
            }
        }
    }
}
