// What lies between the projections and attention: norms heads of queries and keys, turns them by
// their positions, and stores keys and values at their places in a layer's pages. Each part is there
// or not. A subgroup takes one head of one row: query heads first, then keys, then values.
#include "common.glsl"
#include "pages.glsl"
#include "turns.glsl"

layout(local_size_x_id = 0) in;
// Threads of a subgroup.
layout(constant_id = 1) const uint LANES = 32;
layout(constant_id = 2) const uint HEAD_DIM = 128;
layout(constant_id = 3) const bool HALF = true;
layout(constant_id = 4) const uint PAGE_TOKENS = 16;
layout(constant_id = 5) const bool HALVES = false;
layout(constant_id = 6) const bool NORM_QUERY = false;
layout(constant_id = 7) const bool NORM_KEY = false;
// Are there keys and values to store? Else only the counters are set back.
layout(constant_id = 8) const bool STORE = true;

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
    // Of attention, one for each row and KV head; 0: none.
    uint64_t counters;
    // Query heads; 0: queries are ready.
    uint heads;
    uint kv_heads;
    // Turned pairs of a head; 0: nothing is turned.
    uint pairs;
    uint has_long;
    float query_eps;
    float key_eps;
};

const uint HALF_DIM = HEAD_DIM / 2;
// Pairs of elements that a thread takes.
const uint PER_LANE = (HALF_DIM + LANES - 1) / LANES;

void main() {
    uint row = gl_WorkGroupID.y, lane = gl_SubgroupInvocationID;
    uint head = gl_WorkGroupID.x * gl_NumSubgroups + gl_SubgroupID;
    if (head >= heads + 2 * kv_heads) return;
    bool is_query = head < heads, is_value = head >= heads + kv_heads;
    // Head among those of its sort.
    uint within = is_query ? head : head - heads - (is_value ? kv_heads : 0);
    if (counters != 0 && is_value && lane == 0) Words(counters).at[row * kv_heads + within] = 0;
    if (!STORE) return;

    uint width = (is_query ? heads : kv_heads) * HEAD_DIM;
    uint64_t base = (uint64_t(row) * width + within * HEAD_DIM) * 4;
    Floats from = Floats((is_query ? query : is_value ? value : key) + base);
    uint turned = is_value ? 0 : pairs;
    // A pair's two elements; those past the turned ones lie next to each other.
    bool apart = HALVES;
    uvec2 places[PER_LANE];
    vec2 elements[PER_LANE];
    [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
        uint pair = lane + n * LANES;
        places[n] = apart && pair < turned ? uvec2(pair, pair + pairs) : uvec2(2 * pair, 2 * pair + 1);
        elements[n] = pair < HALF_DIM ? vec2(from.at[places[n].x], from.at[places[n].y]) : vec2(0.0);
    }
    if (is_query ? NORM_QUERY : NORM_KEY && !is_value) {
        float square = 0.0;
        [[unroll]] for (uint n = 0; n < PER_LANE; n++)
            square = fma(elements[n].y, elements[n].y, fma(elements[n].x, elements[n].x, square));
        float eps = is_query ? query_eps : key_eps;
        float factor = inversesqrt(subgroupAdd(square) / float(HEAD_DIM) + eps);
        Floats weight = Floats(is_query ? query_weight : key_weight);
        [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
            if (lane + n * LANES >= HALF_DIM) continue;
            elements[n].x = elements[n].x * factor * weight.at[places[n].x];
            elements[n].y = elements[n].y * factor * weight.at[places[n].y];
        }
    }
    uint position = Words(positions).at[row];
    Words sequence = Words(sequences + Words(row_sequences).at[row] * 24);
    if (turned != 0) {
        uint64_t table = turns_table(turns, pairs, has_long != 0 ? sequence.at[5] : 0);
        [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
            uint pair = lane + n * LANES;
            if (pair < turned) elements[n] = turn_pair(table, pairs, position, pair, elements[n]);
        }
    }
    if (is_query) {
        Floats to = Floats(out_ + base);
        [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
            if (lane + n * LANES >= HALF_DIM) continue;
            to.at[places[n].x] = elements[n].x;
            to.at[places[n].y] = elements[n].y;
        }
        return;
    }
    uint page = Words(page_table).at[sequence.at[3] + position / PAGE_TOKENS];
    uint plane = (is_value ? kv_heads : 0) + within;
    uint64_t at = kv_element(page, plane, position % PAGE_TOKENS, kv_heads, PAGE_TOKENS, HEAD_DIM);
    [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
        uint pair = lane + n * LANES;
        if (pair >= HALF_DIM) continue;
        if (HALF) {
            uvec2 bits = uvec2(half_bits(elements[n].x), half_bits(elements[n].y));
            if (apart && pair < turned) {
                Halves to = Halves(pages + at * 2);
                to.at[places[n].x] = uint16_t(bits.x);
                to.at[places[n].y] = uint16_t(bits.y);
            } else {
                Words(pages + at * 2).at[pair] = bits.x | bits.y << 16;
            }
        } else {
            Floats to = Floats(pages + at * 4);
            to.at[places[n].x] = elements[n].x;
            to.at[places[n].y] = elements[n].y;
        }
    }
}
