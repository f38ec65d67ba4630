// Products with a few rows of x, in integer products of four bytes: out[r][o] = x[r] . w[o] (+ bias[o])
// (+ residual[r][o]), w in codes of at most eight bits.
//
// Each thread keeps its chunks of x as whole numbers of 15 bits in two planes of bytes
// (x = unit * (128 * high + low), one unit a chunk), so that products lose next to nothing against f32:
// the rounding is 2^-15 of a chunk's largest element. The workgroup takes LOOPS * ROWS rows of the
// matrix (and as many of `up`): all threads share a row, a thread multiplying its own chunks. The order
// of every sum depends on the workgroup's size alone: a row of x has bitwise the same result alone and
// among others.
#extension GL_EXT_integer_dot_product : require
#include "common.glsl"
#include "block.glsl"
#include "functions.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 8;
layout(constant_id = 2) const uint COLUMNS = 1;
// Is the result f(x . w) * (x . w_up)?
layout(constant_id = 3) const bool GATED = false;
layout(constant_id = 4) const uint FUNCTION = 0;
// Is x scaled by `scale` elementwise and divided by its root mean square?
layout(constant_id = 5) const bool NORM = false;
// Chunks of x that a thread keeps.
layout(constant_id = 6) const uint SHARE = 1;
layout(constant_id = 7) const uint LOOPS = 1;

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
    // Elements between rows of the result.
    uint stride;
    float eps;
    uint has_bias;
    uint has_residual;
};

const uint PARTS = GATED ? 2 : 1;
// Sums that a subgroup reduces together.
const uint SUMS = PARTS * ROWS;
const uint CHUNK_FOURS = 8;

int high[COLUMNS][SHARE][CHUNK_FOURS];
int low[COLUMNS][SHARE][CHUNK_FOURS];
float unit[COLUMNS][SHARE];
// Sums of x over the spans of a chunk.
float span_sum[COLUMNS][SHARE][DOT_SPANS];
float square[COLUMNS];

shared float partial[COLUMNS][SUMS][32];
shared float partial_square[COLUMNS][32];

const int ONES = 0x01010101;

// Bytes of four numbers that are at most 127 in size.
int packed(ivec4 v) {
    return (v.x & 255) | (v.y & 255) << 8 | (v.z & 255) << 16 | v.w << 24;
}

void load_x(uint column) {
    [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
        square[c] = 0.0;
        uint64_t values = x + uint64_t(min(column + c, columns - 1)) * cols * 4;
        [[unroll]] for (uint s = 0; s < SHARE; s++) {
            uint chunk = s * gl_WorkGroupSize.x + gl_LocalInvocationIndex;
            bool inside = chunk < cols / 32;
            vec4 v[CHUNK_FOURS];
            float most = 0.0;
            [[unroll]] for (uint i = 0; i < CHUNK_FOURS; i++) {
                uint element = dot_element(chunk, i);
                v[i] = vec4(0.0);
                if (inside) v[i] = Floats4(values + element * 4).at[0];
                if (NORM && inside) {
                    square[c] = fma(v[i].x, v[i].x, fma(v[i].y, v[i].y,
                                fma(v[i].z, v[i].z, fma(v[i].w, v[i].w, square[c]))));
                    v[i] *= Floats4(scale + element * 4).at[0];
                }
                vec4 size = abs(v[i]);
                most = max(most, max(max(size.x, size.y), max(size.z, size.w)));
            }
            // The largest high byte is 127: 127 * 128 + 63.
            unit[c][s] = most / 16319.0;
            float inverse = most > 0.0 ? 16319.0 / most : 0.0;
            [[unroll]] for (uint span = 0; span < DOT_SPANS; span++) {
                int sum_high = 0, sum_low = 0;
                [[unroll]] for (uint j = 0; j < CHUNK_FOURS / DOT_SPANS; j++) {
                    uint i = span * (CHUNK_FOURS / DOT_SPANS) + j;
                    ivec4 whole = ivec4(round(v[i] * inverse));
                    ivec4 upper = (whole + 64) >> 7;
                    high[c][s][i] = packed(upper);
                    low[c][s][i] = packed(whole - upper * 128);
                    sum_high = dotPacked4x8EXT(high[c][s][i], ONES) + sum_high;
                    sum_low = dotPacked4x8EXT(low[c][s][i], ONES) + sum_low;
                }
                span_sum[c][s][span] = float(sum_high * 128 + sum_low) * unit[c][s];
            }
        }
    }
}

// Adds up SUMS numbers (a power of two, at most a subgroup's threads) over the subgroup: lanes trade
// halves of what they hold, until each group of size / SUMS lanes has one sum of which to make the total.
void store_totals(inout float v[SUMS], uint c) {
    uint lane = gl_SubgroupInvocationID, bit = gl_SubgroupSize / 2, which = 0;
    [[unroll]] for (uint half_ = SUMS / 2; half_ >= 1; half_ /= 2) {
        bool upper = (lane & bit) != 0;
        [[unroll]] for (uint i = 0; i < half_; i++) {
            float give = upper ? v[i] : v[i + half_], keep = upper ? v[i + half_] : v[i];
            v[i] = keep + subgroupShuffleXor(give, bit);
        }
        which = which * 2 + (upper ? 1 : 0);
        bit /= 2;
    }
    float total = v[0];
    for (; bit >= 1; bit /= 2) total += subgroupShuffleXor(total, bit);
    if ((lane & (gl_SubgroupSize / SUMS - 1)) == 0) partial[c][which][gl_SubgroupID] = total;
}

// Codes of a thread's chunk of each row: those that are multiplied, and those on their way.
uint raw[SUMS][RAW_WORDS];
uint next[SUMS][RAW_WORDS];

uint chunk_of(uint share) {
    // Chunks past the end have no x: any weights will do.
    return min(share * gl_WorkGroupSize.x + gl_LocalInvocationIndex, cols / 32 - 1);
}

uint64_t row_of(uint first, uint r) {
    return row_address(GATED && r >= ROWS ? up : weights, min(first + r % ROWS, rows - 1), cols);
}

void begin_load(uint first, uint share) {
    [[unroll]] for (uint r = 0; r < SUMS; r++) load_dot(row_of(first, r), chunk_of(share), next[r]);
}

void main() {
    uint column = gl_WorkGroupID.y * COLUMNS, start = gl_WorkGroupID.x * LOOPS * ROWS;
    // Weights are under way while x is made ready, and while those before them are multiplied.
    begin_load(start, 0);
    load_x(column);
    if (NORM) {
        [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
            float part = subgroupAdd(square[c]);
            if (subgroupElect()) partial_square[c][gl_SubgroupID] = part;
        }
    }
    for (uint loop = 0; loop < LOOPS; loop++) {
        uint first = start + loop * ROWS;
        if (first >= rows) break;
        float sum[COLUMNS][SUMS];
        [[unroll]] for (uint c = 0; c < COLUMNS; c++)
            [[unroll]] for (uint r = 0; r < SUMS; r++) sum[c][r] = 0.0;
        [[unroll]] for (uint s = 0; s < SHARE; s++) {
            [[unroll]] for (uint r = 0; r < SUMS; r++)
                [[unroll]] for (uint i = 0; i < RAW_WORDS; i++) raw[r][i] = next[r][i];
            if (s + 1 < SHARE) begin_load(first, s + 1);
            else if (LOOPS > 1) begin_load(first + ROWS, 0);
            [[unroll]] for (uint r = 0; r < SUMS; r++) {
                int q[CHUNK_FOURS];
                vec2 f[DOT_SPANS];
                decode_dot(raw[r], row_of(first, r), chunk_of(s), q, f);
                [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
                    float inner = 0.0;
                    [[unroll]] for (uint span = 0; span < DOT_SPANS; span++) {
                        int upper = 0, lower = 0;
                        [[unroll]] for (uint j = 0; j < CHUNK_FOURS / DOT_SPANS; j++) {
                            uint i = span * (CHUNK_FOURS / DOT_SPANS) + j;
                            upper += dotPacked4x8EXT(q[i], high[c][s][i]);
                            lower += dotPacked4x8EXT(q[i], low[c][s][i]);
                        }
                        inner = fma(f[span].x, float(upper * 128 + lower), inner);
                        sum[c][r] = fma(f[span].y, span_sum[c][s][span], sum[c][r]);
                    }
                    sum[c][r] = fma(inner, unit[c][s], sum[c][r]);
                }
            }
        }
        [[unroll]] for (uint c = 0; c < COLUMNS; c++) store_totals(sum[c], c);
        barrier();
        for (uint i = gl_LocalInvocationIndex; i < ROWS * COLUMNS; i += gl_WorkGroupSize.x) {
            uint c = i / ROWS, r = i % ROWS, o = first + r;
            if (o >= rows || column + c >= columns) continue;
            float value = 0.0, other = 0.0, factor = 1.0;
            for (uint s = 0; s < gl_NumSubgroups; s++) value += partial[c][r][s];
            if (NORM) {
                float total = 0.0;
                for (uint s = 0; s < gl_NumSubgroups; s++) total += partial_square[c][s];
                factor = inversesqrt(total / float(cols) + eps);
            }
            value *= factor;
            if (GATED) {
                for (uint s = 0; s < gl_NumSubgroups; s++) other += partial[c][ROWS + r][s];
                value = nonlinearity(FUNCTION, value) * (other * factor);
            }
            uint64_t at = uint64_t(column + c) * stride + o;
            if (has_bias != 0) value += Floats(bias + o * 4).at[0];
            if (has_residual != 0) value += Floats(residual + at * 4).at[0];
            Floats(out_ + at * 4).at[0] = value;
        }
        if (LOOPS > 1) barrier();
    }
}
