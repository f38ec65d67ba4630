// Products with a few rows of x, in integer products of four bytes: out[r][o] = x[r] . w[o] (+ bias[o])
// (+ residual[r][o]), w in codes of at most eight bits.
//
// Each thread keeps its chunks of x as whole numbers of 15 bits in two planes of bytes
// (x = unit * (128 * high + low), one unit a chunk), so that products lose next to nothing against f32:
// the rounding is 2^-15 of a chunk's largest element. The workgroup makes them together. Then its teams
// take LOOPS times ROWS rows of the matrix (and as many of `up`): all threads of a team share a row, a
// thread multiplying its own chunks. The order of every sum depends on the team's size and number alone:
// a row of x has bitwise the same result alone and among others.
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
// Teams of a workgroup: a power of two, at most a chunk's words; and the subgroups of
// each.
layout(constant_id = 8) const uint TEAMS = 1;
layout(constant_id = 9) const uint SUBGROUPS = 4;

#ifdef BESIDE
// Up to three matrices side by side, with a result each.
layout(push_constant, std430) uniform Push {
    uint64_t x;
    uint64_t scale;
    uint64_t weights_of[3];
    uint64_t out_of[3];
    // Or none: 0.
    uint64_t bias_of[3];
    uint cols;
    uint columns;
    float eps;
    uint rows_of[3];
};

// The matrix that the workgroup takes rows of.
uint64_t weights, out_, bias, up = 0, residual = 0;
uint rows, stride, has_bias, has_residual = 0;
#else
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
#endif

const uint PARTS = GATED ? 2 : 1;
// Rows of both matrices that a team takes together.
const uint LINES = PARTS * ROWS;

const uint TEAM = gl_WorkGroupSize.x / TEAMS;
// Rows that the workgroup takes.
const uint TAKEN = TEAMS * LOOPS * ROWS;

int high[COLUMNS][SHARE][DOT_FOURS];
int low[COLUMNS][SHARE][DOT_FOURS];
float unit[COLUMNS][SHARE];
// Sums of x over the spans of a chunk, in units.
int span_sum[COLUMNS][SHARE][DOT_SPANS];

// Both planes of a team's chunks on their way between threads: four words of each, twice.
shared uint planes[TEAM * 2 * DOT_FOURS];
shared float units[TEAM];
shared float partial[COLUMNS * PARTS * TAKEN * SUBGROUPS];
shared float partial_square[COLUMNS * TEAMS * SUBGROUPS];

const int ONES = 0x01010101;

// Bytes of four numbers that are at most 127 in size.
uint packed(ivec4 v) {
    return uint((v.x & 255) | (v.y & 255) << 8 | (v.z & 255) << 16 | v.w << 24);
}

// Makes share `s` of column `c` in `planes`, TEAMS threads a chunk, and returns the sum of the squares
// of this thread's elements.
float make_planes(uint c, uint column, uint s) {
    const uint FOURS = DOT_FOURS / TEAMS;
    uint64_t values = x + uint64_t(min(column, columns - 1)) * cols * 4;
    uint local = gl_LocalInvocationIndex / TEAMS, piece = gl_LocalInvocationIndex % TEAMS;
    uint chunk = s * TEAM + local;
    bool inside = chunk < cols / (4 * DOT_FOURS);
    vec4 v[FOURS];
    float most = 0.0, square = 0.0;
    [[unroll]] for (uint i = 0; i < FOURS; i++) {
        uint element = dot_element(chunk, piece * FOURS + i);
        v[i] = vec4(0.0);
        if (inside) v[i] = Floats4(values + element * 4).at[0];
        if (NORM && inside) {
            square = fma(v[i].x, v[i].x, fma(v[i].y, v[i].y, fma(v[i].z, v[i].z, fma(v[i].w, v[i].w, square))));
            v[i] *= Floats4(scale + element * 4).at[0];
        }
        vec4 size = abs(v[i]);
        most = max(most, max(max(size.x, size.y), max(size.z, size.w)));
    }
    [[unroll]] for (uint step = 1; step < TEAMS; step *= 2) most = max(most, subgroupShuffleXor(most, step));
    // The largest high byte is 127: 127 * 128 + 63.
    float inverse = most > 0.0 ? 16319.0 / most : 0.0;
    if (piece == 0) units[local] = most / 16319.0;
    [[unroll]] for (uint i = 0; i < FOURS; i++) {
        ivec4 whole = ivec4(round(v[i] * inverse)), upper = (whole + 64) >> 7;
        uint at = local * 2 * DOT_FOURS + piece * FOURS + i;
        planes[at] = packed(upper);
        planes[at + DOT_FOURS] = packed(whole - upper * 128);
    }
    return square;
}

// Takes this thread's chunk out of `planes`.
void take_planes(uint c, uint s, uint member) {
    unit[c][s] = units[member];
    [[unroll]] for (uint i = 0; i < DOT_FOURS; i++) {
        high[c][s][i] = int(planes[member * 2 * DOT_FOURS + i]);
        low[c][s][i] = int(planes[member * 2 * DOT_FOURS + DOT_FOURS + i]);
    }
    [[unroll]] for (uint span = 0; span < DOT_SPANS; span++) {
        int sum_high = 0, sum_low = 0;
        [[unroll]] for (uint j = 0; j < DOT_FOURS / DOT_SPANS; j++) {
            uint i = span * (DOT_FOURS / DOT_SPANS) + j;
            sum_high = dotPacked4x8EXT(high[c][s][i], ONES) + sum_high;
            sum_low = dotPacked4x8EXT(low[c][s][i], ONES) + sum_low;
        }
        span_sum[c][s][span] = sum_high * 128 + sum_low;
    }
}

void load_x(uint column) {
    uint member = gl_LocalInvocationIndex % TEAM;
    [[unroll]] for (uint c = 0; c < COLUMNS; c++) {
        float square = 0.0;
        [[unroll]] for (uint s = 0; s < SHARE; s++) {
            square += make_planes(c, column + c, s);
            barrier();
            take_planes(c, s, member);
            if (c + 1 < COLUMNS || s + 1 < SHARE) barrier();
        }
        if (NORM) {
            square = subgroupAdd(square);
            if (subgroupElect()) partial_square[c * TEAMS * SUBGROUPS + gl_SubgroupID] = square;
        }
    }
}

// Adds up LINES numbers (a power of two, at most a subgroup's threads) over the subgroup: lanes trade
// halves of what they hold, until each group of size / LINES lanes has one sum of which to make the total.
// `row` is the first of them among those that the workgroup takes.
void store_totals(inout float v[LINES], uint c, uint row) {
    uint lane = gl_SubgroupInvocationID, bit = gl_SubgroupSize / 2, which = 0;
    [[unroll]] for (uint half_ = LINES / 2; half_ >= 1; half_ /= 2) {
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
    if ((lane & (gl_SubgroupSize / LINES - 1)) == 0)
        partial[((c * TAKEN + row) * PARTS + which) * SUBGROUPS + gl_SubgroupID % SUBGROUPS] = total;
}

// Codes of a thread's chunk of each row, on their way.
uint raw[LINES][RAW_WORDS];

uint chunk_of(uint share) {
    // Chunks past the end have no x: any weights will do.
    return min(share * TEAM + gl_LocalInvocationIndex % TEAM, cols / (4 * DOT_FOURS) - 1);
}

uint64_t line_at(uint first, uint r) {
    return row_address(GATED && r % PARTS == 1 ? up : weights, min(first + r / PARTS, rows - 1), cols);
}

void begin_load(uint first, uint r, uint share) { load_dot(line_at(first, r), chunk_of(share), raw[r]); }

// The product of a chunk of codes with share `s` of column `c`.
float product(int q[DOT_FOURS], int scales[DOT_SPANS], int least[DOT_SPANS], vec2 f, uint c, uint s) {
    float total = 0.0;
    [[unroll]] for (uint first = 0; first < DOT_SPANS; first += DOT_TOGETHER) {
        int inner = 0, offset = 0;
        [[unroll]] for (uint span = first; span < first + DOT_TOGETHER; span++) {
            int upper = 0, lower = 0;
            [[unroll]] for (uint j = 0; j < DOT_FOURS / DOT_SPANS; j++) {
                uint i = span * (DOT_FOURS / DOT_SPANS) + j;
                upper += dotPacked4x8EXT(q[i], high[c][s][i]);
                lower += dotPacked4x8EXT(q[i], low[c][s][i]);
            }
            inner += scales[span] * (upper * 128 + lower - DOT_ZERO * span_sum[c][s][span]);
            offset += least[span] * span_sum[c][s][span];
        }
        total = fma(f.x, float(inner), fma(f.y, float(offset), total));
    }
    return total * unit[c][s];
}

// The sum over a team, of subgroup after subgroup.
float team_total(uint at) {
    float total = 0.0;
    for (uint s = 0; s < SUBGROUPS; s++) total += partial[at * SUBGROUPS + s];
    return total;
}

void main() {
    uint group = gl_WorkGroupID.x;
#ifdef BESIDE
    uint matrix = 0;
    [[unroll]] for (uint i = 0; i < 2; i++) {
        uint groups = (rows_of[i] + TAKEN - 1) / TAKEN;
        if (matrix == i && group >= groups) {
            group -= groups;
            matrix = i + 1;
        }
    }
    weights = weights_of[matrix];
    out_ = out_of[matrix];
    bias = bias_of[matrix];
    rows = stride = rows_of[matrix];
    has_bias = bias != 0 ? 1 : 0;
#endif
    uint column = gl_WorkGroupID.y * COLUMNS, start = group * TAKEN;
    uint team = gl_LocalInvocationIndex / TEAM;
    // Weights are under way while x is made ready, and while those before them are multiplied.
    [[unroll]] for (uint r = 0; r < LINES; r++) begin_load(start + team * ROWS, r, 0);
    load_x(column);
    for (uint loop = 0; loop < LOOPS; loop++) {
        // Of the rows that the workgroup takes.
        uint row = (loop * TEAMS + team) * ROWS, first = start + row;
        if (first >= rows) break;
        float sum[COLUMNS][LINES];
        [[unroll]] for (uint c = 0; c < COLUMNS; c++)
            [[unroll]] for (uint r = 0; r < LINES; r++) sum[c][r] = 0.0;
        [[unroll]] for (uint s = 0; s < SHARE; s++) {
            [[unroll]] for (uint r = 0; r < LINES; r++) {
                int q[DOT_FOURS], scales[DOT_SPANS], least[DOT_SPANS];
                vec2 f;
                decode_dot(raw[r], line_at(first, r), chunk_of(s), q, scales, least, f);
                // What comes next here is on its way while the other rows are multiplied.
                if (s + 1 < SHARE) begin_load(first, r, s + 1);
                else if (loop + 1 < LOOPS) begin_load(first + TEAMS * ROWS, r, 0);
                [[unroll]] for (uint c = 0; c < COLUMNS; c++)
                    sum[c][r] += product(q, scales, least, f, c, s);
            }
        }
        [[unroll]] for (uint c = 0; c < COLUMNS; c++) store_totals(sum[c], c, row);
    }
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < COLUMNS * TAKEN; i += gl_WorkGroupSize.x) {
        uint c = i / TAKEN, o = start + i % TAKEN;
        if (o >= rows || column + c >= columns) continue;
        float factor = 1.0;
        if (NORM) {
            float total = 0.0;
            for (uint s = 0; s < TEAMS * SUBGROUPS; s++) total += partial_square[c * TEAMS * SUBGROUPS + s];
            factor = inversesqrt(total / float(cols) + eps);
        }
        float value = team_total(i * PARTS) * factor;
        if (GATED) value = nonlinearity(FUNCTION, value) * (team_total(i * PARTS + 1) * factor);
        uint64_t at = uint64_t(column + c) * stride + o;
        if (has_bias != 0) value += Floats(bias + o * 4).at[0];
        if (has_residual != 0) value += Floats(residual + at * 4).at[0];
        Floats(out_ + at * 4).at[0] = value;
    }
}
