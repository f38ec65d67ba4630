// Attention of many rows: a workgroup takes TILE rows of one sequence (of one query head, its subgroups
// EDGE rows each) over the whole past, BLOCK positions at a time, in products of halves with sums in
// f32. Keys and values of a block go through shared memory, one after the other, each being read while
// the other is multiplied.
//
// The mixture is scaled by the largest score seen; a larger one rescales it only once it is larger by
// STEP (else the weights are up to exp(STEP), which halves hold), and the sum of the weights with it.
#include "common.glsl"
#include "functions.glsl"
#include "matrices.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint HEAD_DIM = 128;
// Query heads that share a KV head.
layout(constant_id = 2) const uint GROUP = 4;
layout(constant_id = 3) const bool CAUSAL = true;
layout(constant_id = 4) const uint EDGE = 16;
layout(constant_id = 5) const uint SUBGROUPS = 4;
layout(constant_id = 6) const uint PAGE_TOKENS = 16;

layout(push_constant, std430) uniform Push {
    uint64_t query;
    uint64_t sequences;
    uint64_t page_table;
    uint64_t pages;
    uint64_t out_;
    uint kv_heads;
    uint sequence_count;
    float scale;
    float softcap;
    // Positions that a query sees, itself included; 0: all.
    uint window;
};

const uint TILE = EDGE * SUBGROUPS;
const uint BLOCK = 64;
const float STEP = 8.0;
const uint PITCH = BLOCK + 8;
const uint SLICES = HEAD_DIM / EDGE;
const uint THREADS = gl_WorkGroupSize.x;
// Eight halves at a time; rows of the block are one such apart from the next, for other banks.
const uint EIGHTS = HEAD_DIM / 8;
const uint KV_PITCH = EIGHTS + 1;
const uint PIECES = (BLOCK * EIGHTS + THREADS - 1) / THREADS;
const float NOTHING = -1e30;

shared float scores[SUBGROUPS * EDGE * PITCH];
shared float16_t weights[SUBGROUPS * EDGE * PITCH];
shared uvec4 block_tile[BLOCK * KV_PITCH];
shared float most[SUBGROUPS * EDGE];
shared float total[SUBGROUPS * EDGE];
shared float factor[SUBGROUPS * EDGE];

void subgroup_fence() {
    controlBarrier(gl_ScopeSubgroup, gl_ScopeSubgroup, gl_StorageSemanticsShared, gl_SemanticsAcquireRelease);
}

uvec4 next[PIECES];

// Begins to read the keys (plane 0) or values (plane 1) of the block's positions.
void begin_load(uint block, uint plane, uint kv_head, uint first_page, uint last_page) {
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint piece = i * THREADS + gl_LocalInvocationIndex;
        if (piece >= BLOCK * EIGHTS) continue;
        uint token = block + piece / EIGHTS;
        // Positions past the end get no weight: any page will do.
        uint page = Words(page_table).at[first_page + min(token / PAGE_TOKENS, last_page)];
        uint64_t at = (((uint64_t(page) * 2 + plane) * kv_heads + kv_head) * PAGE_TOKENS
            + token % PAGE_TOKENS) * HEAD_DIM;
        next[i] = Words4(pages + at * 2).at[piece % EIGHTS];
    }
}

void store_block() {
    barrier();
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint piece = i * THREADS + gl_LocalInvocationIndex;
        if (piece < BLOCK * EIGHTS) block_tile[piece / EIGHTS * KV_PITCH + piece % EIGHTS] = next[i];
    }
    barrier();
}

void main() {
    uint head = gl_WorkGroupID.x, kv_head = head / GROUP, heads = kv_heads * GROUP;
    // Tiles of all sequences follow each other: find this one's.
    uint tile = gl_WorkGroupID.y, first = 0;
    Words sequence = Words(sequences);
    for (uint s = 0; s < sequence_count; s++) {
        sequence = Words(sequences + s * 24);
        uint tiles = (sequence.at[1] + TILE - 1) / TILE;
        if (tile < tiles) break;
        tile -= tiles;
        if (s + 1 == sequence_count) return;
    }
    uint first_row = sequence.at[0], rows = sequence.at[1], past = sequence.at[2];
    uint first_page = sequence.at[3], length = past + rows;
    uint lane = gl_SubgroupInvocationID, lanes = gl_SubgroupSize;
    uint own = gl_SubgroupID * EDGE;
    // Rows of this subgroup, counted within the sequence; those past the end repeat the last one and
    // are not stored.
    uint base = tile * TILE + own;
    uint last_page = (length - 1) / PAGE_TOKENS;
    uint last_row = min(tile * TILE + TILE, rows) - 1;
    uint end = CAUSAL ? past + last_row + 1 : length;
    uint begin = window != 0 && past + tile * TILE + 1 > window ? past + tile * TILE + 1 - window : 0;
    begin = begin / BLOCK * BLOCK;
    begin_load(begin, 0, kv_head, first_page, last_page);

    // Queries as halves, scaled, a matrix at a time by way of the weights' place.
    Left(EDGE) queries[SLICES];
    [[unroll]] for (uint d = 0; d < SLICES; d++) {
        for (uint i = lane; i < EDGE * EDGE; i += lanes) {
            uint row = first_row + min(base + i / EDGE, rows - 1);
            uint64_t at = (uint64_t(row) * heads + head) * HEAD_DIM + d * EDGE + i % EDGE;
            weights[(own + i / EDGE) * PITCH + i % EDGE] = float16_t(Floats(query + at * 4).at[0] * scale);
        }
        subgroup_fence();
        coopMatLoad(queries[d], weights, own * PITCH, PITCH, ROWS_FIRST);
        subgroup_fence();
    }
    for (uint i = lane; i < EDGE; i += lanes) {
        most[own + i] = NOTHING;
        total[own + i] = 0.0;
    }
    subgroup_fence();

    Sum(EDGE) mixed[SLICES];
    [[unroll]] for (uint d = 0; d < SLICES; d++) mixed[d] = Sum(EDGE)(0.0);
    for (uint block = begin; block < end; block += BLOCK) {
        store_block();
        begin_load(block, 1, kv_head, first_page, last_page);
        [[unroll]] for (uint j = 0; j < BLOCK / EDGE; j++) {
            Sum(EDGE) score = Sum(EDGE)(0.0);
            [[unroll]] for (uint d = 0; d < SLICES; d++) {
                Right(EDGE) k;
                coopMatLoad(k, block_tile, j * EDGE * KV_PITCH + d * (EDGE / 8), KV_PITCH, COLUMNS_FIRST);
                score = coopMatMulAdd(queries[d], k, score);
            }
            coopMatStore(score, scores, own * PITCH + j * EDGE, PITCH, ROWS_FIRST);
        }
        subgroup_fence();
        // Lanes share a row: `team` of them take its positions in turn.
        uint team = lanes / EDGE > 0 ? lanes / EDGE : 1;
        bool rescale = false;
        for (uint r = lane / team; r < EDGE; r += lanes / team) {
            uint row = min(base + r, rows - 1), position = past + row;
            uint seen = CAUSAL ? position + 1 : length;
            uint from = window != 0 && position + 1 > window ? position + 1 - window : 0;
            uint at = (own + r) * PITCH;
            float highest = NOTHING;
            for (uint t = lane % team; t < BLOCK; t += team) {
                float score = scores[at + t];
                if (softcap != 0.0) score = softcap * bounded_tanh(score / softcap);
                uint token = block + t;
                score = token < seen && token >= from ? score : NOTHING;
                scores[at + t] = score;
                highest = max(highest, score);
            }
            for (uint step = 1; step < team; step *= 2) highest = max(highest, subgroupShuffleXor(highest, step));
            float before = most[own + r];
            // The first scores of a row set the scale; later ones only if they are much larger.
            bool larger = highest > before + (before == NOTHING ? 0.0 : STEP);
            float now = larger ? highest : before;
            float shrink = larger ? exp(before - now) : 1.0;
            float sum = 0.0;
            for (uint t = lane % team; t < BLOCK; t += team) {
                float score = scores[at + t];
                float16_t e = float16_t(score == NOTHING ? 0.0 : exp(score - now));
                weights[at + t] = e;
                sum += float(e);
            }
            for (uint step = 1; step < team; step *= 2) sum += subgroupShuffleXor(sum, step);
            if (lane % team == 0) {
                most[own + r] = now;
                total[own + r] = total[own + r] * shrink + sum;
                factor[own + r] = shrink;
            }
            rescale = rescale || (larger && before != NOTHING);
        }
        subgroup_fence();
        if (subgroupAny(rescale)) {
            [[unroll]] for (uint d = 0; d < SLICES; d++) {
                coopMatStore(mixed[d], scores, own * PITCH, PITCH, ROWS_FIRST);
                subgroup_fence();
                for (uint e = lane; e < EDGE * EDGE; e += lanes)
                    scores[(own + e / EDGE) * PITCH + e % EDGE] *= factor[own + e / EDGE];
                subgroup_fence();
                coopMatLoad(mixed[d], scores, own * PITCH, PITCH, ROWS_FIRST);
                subgroup_fence();
            }
        }
        store_block();
        begin_load(block + BLOCK, 0, kv_head, first_page, last_page);
        [[unroll]] for (uint j = 0; j < BLOCK / EDGE; j++) {
            Left(EDGE) w;
            coopMatLoad(w, weights, own * PITCH + j * EDGE, PITCH, ROWS_FIRST);
            [[unroll]] for (uint d = 0; d < SLICES; d++) {
                Right(EDGE) v;
                coopMatLoad(v, block_tile, j * EDGE * KV_PITCH + d * (EDGE / 8), KV_PITCH, ROWS_FIRST);
                mixed[d] = coopMatMulAdd(w, v, mixed[d]);
            }
        }
    }

    [[unroll]] for (uint d = 0; d < SLICES; d++) {
        coopMatStore(mixed[d], scores, own * PITCH, PITCH, ROWS_FIRST);
        subgroup_fence();
        for (uint e = lane; e < EDGE * EDGE; e += lanes) {
            uint r = e / EDGE;
            if (base + r >= rows) continue;
            float value = scores[(own + r) * PITCH + e % EDGE] / total[own + r];
            uint64_t row = uint64_t(first_row + base + r);
            Floats(out_ + ((row * heads + head) * HEAD_DIM + d * EDGE + e % EDGE) * 4).at[0] = value;
        }
        subgroup_fence();
    }
}
