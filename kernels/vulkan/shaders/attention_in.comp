// What lies between the projections and attention: norms heads of queries and keys, turns them by
// their positions, and stores keys and values at their places in a layer's pages. Each part is there
// or not. A subgroup takes one head of one row: query heads first, then keys, then values.
#include "common.glsl"

layout(local_size_x_id = 0) in;
// Threads of a subgroup.
layout(constant_id = 1) const uint LANES = 32;
layout(constant_id = 2) const uint HEAD_DIM = 128;
layout(constant_id = 3) const bool HALF = true;
layout(constant_id = 4) const uint PAGE_TOKENS = 16;
layout(constant_id = 5) const bool HALVES = false;
layout(constant_id = 6) const bool NORM_QUERY = false;
layout(constant_id = 7) const bool NORM_KEY = false;
#include "heads.glsl"

layout(push_constant, std430) uniform Push {
    uint64_t query;
    uint64_t key;
    uint64_t value;
    uint64_t query_weight;
    uint64_t key_weight;
    uint64_t turns;
    uint64_t positions;
    uint64_t row_sequences;
    uint64_t sequences;
    uint64_t page_table;
    uint64_t out_;
    uint64_t pages;
    // Query heads; 0: queries are ready.
    uint heads;
    uint kv_heads;
    // Turned pairs of a head; 0: nothing is turned.
    uint pairs;
    uint has_long;
    float query_eps;
    float key_eps;
};

void main() {
    uint row = gl_WorkGroupID.y, head = gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID;
    if (head >= heads + 2 * kv_heads) return;
    bool is_query = head < heads, is_value = head >= heads + kv_heads;
    // Head among those of its sort.
    uint within = is_query ? head : head - heads - (is_value ? kv_heads : 0);
    uint width = (is_query ? heads : kv_heads) * HEAD_DIM;
    uint64_t base = (uint64_t(row) * width + within * HEAD_DIM) * 4;
    uint turned = is_value ? 0 : pairs;
    read_head((is_query ? query : is_value ? value : key) + base, turned);
    if (is_query ? NORM_QUERY : NORM_KEY && !is_value)
        norm_head(is_query ? query_weight : key_weight, is_query ? query_eps : key_eps);
    uint position = Words(positions).at[row];
    Words sequence = Words(sequences + Words(row_sequences).at[row] * 24);
    if (turned != 0) turn_head(turns_table(turns, pairs, has_long != 0 ? sequence.at[5] : 0), turned, position);
    if (is_query) {
        Floats to = Floats(out_ + base);
        [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
            if (pair_of(n) >= HALF_DIM) continue;
            to.at[places[n].x] = elements[n].x;
            to.at[places[n].y] = elements[n].y;
        }
        return;
    }
    uint page = Words(page_table).at[sequence.at[3] + position / PAGE_TOKENS];
    uint plane = (is_value ? kv_heads : 0) + within;
    store_head(pages, kv_element(page, plane, position % PAGE_TOKENS, kv_heads, PAGE_TOKENS, HEAD_DIM), turned);
}
