// Products of single rows with the experts chosen for them: out[p][o] = x . w[o] of the expert of pair
// p = row * top_k + choice, where x is row p / top_k, or p itself.
//
// A workgroup takes ROWS rows of the matrix for one pair, its threads (in at most 32 subgroups) take
// chunks of them in turn. Workgroups (x, y) are for (rows of the matrix, pairs); with fewer of them than
// rows / ROWS, each takes several ROWS in turn. The order of a sum depends on the sizes of subgroup and
// workgroup alone.
#include "common.glsl"
#include "block.glsl"
#include "functions.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint ROWS = 2;
// Is the result f(x . w) * (x . w_up)?
layout(constant_id = 2) const bool GATED = false;
layout(constant_id = 3) const uint FUNCTION = 0;
// Has each pair its own row of x?
layout(constant_id = 4) const bool X_OF_PAIR = false;

layout(push_constant, std430) uniform Push {
    // Addresses of the experts' matrices, each [rows, cols].
    uint64_t weights;
    uint64_t x;
    uint64_t out_;
    uint64_t tables;
    uint64_t up;
    // [rows of x, 2 * top_k]: numbers of experts, then shares.
    uint64_t route;
    uint cols;
    uint rows;
    uint top_k;
};

const uint PARTS = GATED ? 2 : 1;

shared float partial[PARTS * ROWS][32];

// Product number `i` of those that the subgroups have left parts of.
float total(uint i) {
    float sum = 0.0;
    for (uint s = 0; s < gl_NumSubgroups; s++) sum += partial[i][s];
    return sum;
}

void rows_from(uint first, uint64_t matrix[2], uint64_t values, uint64_t to) {
    float sum[2][ROWS];
    uint64_t row[2][ROWS];
    [[unroll]] for (uint p = 0; p < PARTS; p++) {
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            sum[p][r] = 0.0;
            // Rows past the end repeat the last one; their sums are not stored.
            row[p][r] = row_address(matrix[p], min(first + r, rows - 1), cols);
        }
    }
    for (uint chunk = gl_LocalInvocationIndex; chunk < cols / CHUNK; chunk += gl_WorkGroupSize.x) {
        vec4 v[CHUNK / 4];
        [[unroll]] for (uint i = 0; i < CHUNK / 4; i++)
            v[i] = Floats4(values + chunk_element(chunk, i) * 4).at[0];
        [[unroll]] for (uint p = 0; p < PARTS; p++) {
            [[unroll]] for (uint r = 0; r < ROWS; r++) {
                vec4 w[CHUNK / 4];
                decode_chunk(row[p][r], chunk, w);
                [[unroll]] for (uint i = 0; i < CHUNK / 4; i++)
                    [[unroll]] for (uint j = 0; j < 4; j++)
                        sum[p][r] = fma(w[i][j], v[i][j], sum[p][r]);
            }
        }
    }
    [[unroll]] for (uint p = 0; p < PARTS; p++) {
        [[unroll]] for (uint r = 0; r < ROWS; r++) {
            float part = subgroupAdd(sum[p][r]);
            if (subgroupElect()) partial[p * ROWS + r][gl_SubgroupID] = part;
        }
    }
    barrier();
    for (uint r = gl_LocalInvocationIndex; r < min(ROWS, rows - first); r += gl_WorkGroupSize.x) {
        float value = total(r);
        if (GATED) value = nonlinearity(FUNCTION, value) * total(ROWS + r);
        Floats(to + (first + r) * 4).at[0] = value;
    }
    // The parts are read before the next ones are written.
    barrier();
}

void main() {
    uint pair = gl_WorkGroupID.y, choice = pair % top_k;
    uint expert = uint(Floats(route + (uint64_t(pair / top_k) * top_k * 2 + choice) * 4).at[0]);
    uint64_t matrix[2] = uint64_t[](Addresses(weights).at[expert], 0);
    if (GATED) matrix[1] = Addresses(up).at[expert];
    uint64_t values = x + uint64_t(X_OF_PAIR ? pair : pair / top_k) * cols * 4;
    uint64_t to = out_ + uint64_t(pair) * rows * 4;
    for (uint first = gl_WorkGroupID.x * ROWS; first < rows; first += gl_NumWorkGroups.x * ROWS)
        rows_from(first, matrix, values, to);
}
