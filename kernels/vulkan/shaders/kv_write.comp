// Stores keys and values of the step's rows at their places in a layer's pages. A thread takes two
// elements next to each other.
#include "common.glsl"
#include "pages.glsl"

layout(local_size_x = 64) in;
layout(constant_id = 0) const bool HALF = true;
layout(constant_id = 1) const uint PAGE_TOKENS = 16;

layout(push_constant, std430) uniform Push {
    uint64_t key;
    uint64_t value;
    uint64_t positions;
    uint64_t row_sequences;
    uint64_t sequences;
    uint64_t page_table;
    uint64_t pages;
    uint kv_heads;
    uint head_dim;
};

void main() {
    uint row = gl_WorkGroupID.y;
    uint width = kv_heads * head_dim;
    uint element = (gl_WorkGroupID.x * 64 + gl_LocalInvocationIndex) * 2;
    if (element >= 2 * width) return;
    bool is_value = element >= width;
    uint within = is_value ? element - width : element;
    uint head = within / head_dim, i = within % head_dim;
    uint position = Words(positions).at[row];
    uint sequence = Words(row_sequences).at[row];
    uint first_page = Words(sequences).at[sequence * 6 + 3];
    uint page = Words(page_table).at[first_page + position / PAGE_TOKENS];
    Floats from = Floats((is_value ? value : key) + (uint64_t(row) * width + within) * 4);
    uint plane = (is_value ? kv_heads : 0) + head;
    uint64_t at = kv_element(page, plane, position % PAGE_TOKENS, kv_heads, PAGE_TOKENS, head_dim) + i;
    if (HALF) {
        Words(pages + at * 2).at[0] = half_bits(from.at[0]) | half_bits(from.at[1]) << 16;
    } else {
        Floats to = Floats(pages + at * 4);
        to.at[0] = from.at[0];
        to.at[1] = from.at[1];
    }
}
