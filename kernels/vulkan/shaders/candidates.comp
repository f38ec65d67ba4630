// The K largest of each row, with their places: largest first, the lower place first among equals. Two
// passes. The first, with groups (slices, rows), takes logits [rows, count] and leaves the K best of each
// slice of `slice` (at least K) numbers in `keys`; the second, with groups (1, rows), takes those and
// leaves K pairs of a place (u32) and its number (f32) in `out_` for each row. A last slice with fewer
// than K numbers fills up with keys of zero, which no number has.
//
// Of the keys that a workgroup looks at, those at or above the K-th best of its threads' best ones are
// enough, and they are few: at most K times a thread's share. Each is then put where its rank says.
// So a slice, and slices * K, are at most 256 * 2048 / K.
#include "common.glsl"
#include "order.glsl"

layout(local_size_x = 256) in;
layout(constant_id = 0) const uint K = 1;
layout(constant_id = 1) const bool MERGE = false;

layout(push_constant, std430) uniform Push {
    uint64_t logits;
    uint64_t keys;
    uint64_t out_;
    uint count;
    uint slice;
    uint slices;
};

const uint NEAR_MAX = 2048;
shared uint64_t best_of[256];
shared uint64_t near[NEAR_MAX];
shared uint near_count;
shared uint64_t bound;

uint row, first, items;

// Keys of slices lie rank by rank: so the best of all slices come to different threads.
uint64_t keys_of_row() { return keys + uint64_t(row) * slices * K * 8; }

uint64_t item(uint i) {
    if (MERGE) return Addresses(keys_of_row()).at[i];
    return order_key(Floats(logits + (uint64_t(row) * count + first + i) * 4).at[0], first + i);
}

void put(uint rank, uint64_t key) {
    if (MERGE) {
        uint place = key_place(key);
        float value = Floats(logits + (uint64_t(row) * count + place) * 4).at[0];
        Words2(out_ + (uint64_t(row) * K + rank) * 8).at[0] = uvec2(place, floatBitsToUint(value));
    } else {
        Addresses(keys_of_row()).at[rank * slices + gl_WorkGroupID.x] = key;
    }
}

// The largest key of the subgroup.
uint64_t subgroup_best(uint64_t key) {
    uvec2 words = unpackUint2x32(key);
    uint high = subgroupMax(words.y);
    uint low = subgroupMax(words.y == high ? words.x : 0);
    return packUint2x32(uvec2(low, high));
}

void main() {
    row = gl_WorkGroupID.y;
    first = MERGE ? 0 : gl_WorkGroupID.x * slice;
    items = MERGE ? slices * K : min(slice, count - first);
    uint thread = gl_LocalInvocationIndex;
    uint64_t best = 0;
    for (uint i = thread; i < items; i += 256) best = max(best, item(i));
    if (K == 1) {
        best = subgroup_best(best);
        if (subgroupElect()) best_of[gl_SubgroupID] = best;
        barrier();
        if (thread != 0) return;
        for (uint i = 1; i < gl_NumSubgroups; i++) best = max(best, best_of[i]);
        put(0, best);
        return;
    }

    // The K-th largest of the threads' best ones; where fewer than K threads have any, any key counts.
    best_of[thread] = best;
    if (thread == 0) {
        near_count = 0;
        bound = 1;
    }
    if (!MERGE && thread < K && thread >= items) put(thread, 0);
    barrier();
    uint above = 0;
    for (uint i = 0; i < 256; i++) above += best_of[i] > best ? 1 : 0;
    if (above == K - 1 && best != 0) bound = best;
    barrier();
    for (uint i = thread; i < items; i += 256) {
        uint64_t key = item(i);
        if (key >= bound) near[atomicAdd(near_count, 1)] = key;
    }
    barrier();
    for (uint i = thread; i < near_count; i += 256) {
        uint64_t key = near[i];
        uint rank = 0;
        for (uint j = 0; j < near_count; j++) rank += near[j] > key ? 1 : 0;
        if (rank < K) put(rank, key);
    }
}
