// Attention of single rows: a workgroup takes one row, one KV head with the query heads that share
// it, and SPLIT positions of the sequence. It leaves, per query head, the mixture of the values, the
// largest score and the sum of the exponentials; attention_join puts the splits together. Splits have
// fixed boundaries, so that a row's result depends on nothing but its own sequence.
#include "common.glsl"
#include "functions.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint HEAD_DIM = 128;
// Query heads that share a KV head.
layout(constant_id = 2) const uint GROUP = 4;
layout(constant_id = 3) const bool HALF = true;
layout(constant_id = 4) const uint PAGE_TOKENS = 16;
layout(constant_id = 5) const bool CAUSAL = true;
// Threads that share a token's values: each takes four elements at a time.
layout(constant_id = 6) const uint VALUE_LANES = 32;

layout(push_constant, std430) uniform Push {
    uint64_t query;
    uint64_t positions;
    uint64_t row_sequences;
    uint64_t sequences;
    uint64_t page_table;
    uint64_t pages;
    uint64_t partials;
    uint kv_heads;
    uint splits;
    uint first_row;
    float scale;
    float softcap;
    // Positions that a query sees, itself included; 0: all.
    uint window;
};

const uint SPLIT = 256;
const uint FOURS = HEAD_DIM / 4;

shared vec4 queries[GROUP * FOURS];
shared float scores[GROUP * SPLIT];
shared vec4 mixed[gl_WorkGroupSize.x];
shared uint table[SPLIT];

// Four elements next to each other.
vec4 load_four(uint64_t element) {
    if (HALF) {
        uvec2 bits = Words2(pages + element * 2).at[0];
        return vec4(unpackHalf2x16(bits.x), unpackHalf2x16(bits.y));
    }
    return Floats4(pages + element * 4).at[0];
}

void main() {
    uint threads = gl_WorkGroupSize.x, thread = gl_LocalInvocationIndex;
    uint kv_head = gl_WorkGroupID.x, split = gl_WorkGroupID.y, row = first_row + gl_WorkGroupID.z;
    uint position = Words(positions).at[row];
    Words sequence = Words(sequences + Words(row_sequences).at[row] * 24);
    uint length = sequence.at[1] + sequence.at[2];
    uint end = CAUSAL ? position + 1 : length;
    uint begin = window != 0 && position + 1 > window ? position + 1 - window : 0;
    uint first = max(split * SPLIT, begin), last = min((split + 1) * SPLIT, end);
    uint heads = kv_heads * GROUP;
    // Per head: HEAD_DIM mixed values, largest score, sum; whole vectors of four.
    uint record = HEAD_DIM + 4;
    uint64_t target = partials
        + ((uint64_t(row) * heads + kv_head * GROUP) * splits + split) * record * 4;
    if (first >= last) {
        for (uint g = thread; g < GROUP; g += threads)
            Floats4(target + uint64_t(g) * splits * record * 4 + HEAD_DIM * 4).at[0] =
                vec4(-1e30, 0.0, 0.0, 0.0);
        return;
    }
    for (uint i = thread; i < GROUP * FOURS; i += threads)
        queries[i] = Floats4(query + (uint64_t(row) * heads + kv_head * GROUP) * HEAD_DIM * 4).at[i];
    uint first_page = sequence.at[3];
    for (uint i = thread; i < SPLIT / PAGE_TOKENS + 1; i += threads) {
        uint page = split * SPLIT / PAGE_TOKENS + i;
        if (page * PAGE_TOKENS < last) table[i] = Words(page_table).at[first_page + page];
    }
    barrier();
    for (uint t = first + thread; t < last; t += threads) {
        uint page = table[t / PAGE_TOKENS - split * SPLIT / PAGE_TOKENS];
        uint64_t key = ((uint64_t(page) * 2 * kv_heads + kv_head) * PAGE_TOKENS + t % PAGE_TOKENS) * HEAD_DIM;
        float sum[GROUP];
        [[unroll]] for (uint g = 0; g < GROUP; g++) sum[g] = 0.0;
        for (uint i = 0; i < FOURS; i++) {
            vec4 k = load_four(key + i * 4);
            [[unroll]] for (uint g = 0; g < GROUP; g++) {
                vec4 q = queries[g * FOURS + i];
                sum[g] = fma(q.x, k.x, fma(q.y, k.y, fma(q.z, k.z, fma(q.w, k.w, sum[g]))));
            }
        }
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            float score = sum[g] * scale;
            if (softcap != 0.0) score = softcap * bounded_tanh(score / softcap);
            scores[g * SPLIT + t - split * SPLIT] = score;
        }
    }
    barrier();
    // A subgroup takes a head's scores.
    uint from = first - split * SPLIT, to = last - split * SPLIT;
    for (uint g = gl_SubgroupID; g < GROUP; g += gl_NumSubgroups) {
        float most = -1e30;
        for (uint t = from + gl_SubgroupInvocationID; t < to; t += gl_SubgroupSize)
            most = max(most, scores[g * SPLIT + t]);
        most = subgroupMax(most);
        float sum = 0.0;
        for (uint t = from + gl_SubgroupInvocationID; t < to; t += gl_SubgroupSize) {
            float e = exp(scores[g * SPLIT + t] - most);
            scores[g * SPLIT + t] = e;
            sum += e;
        }
        sum = subgroupAdd(sum);
        if (subgroupElect())
            Floats4(target + uint64_t(g) * splits * record * 4 + HEAD_DIM * 4).at[0] =
                vec4(most, sum, 0.0, 0.0);
    }
    barrier();
    // VALUE_LANES threads read a token's values; teams of them take tokens in turn.
    uint lane = thread % VALUE_LANES, team = thread / VALUE_LANES, teams = threads / VALUE_LANES;
    for (uint i = lane; i < (FOURS + VALUE_LANES - 1) / VALUE_LANES * VALUE_LANES; i += VALUE_LANES) {
        vec4 sum[GROUP];
        [[unroll]] for (uint g = 0; g < GROUP; g++) sum[g] = vec4(0.0);
        if (i < FOURS) {
            for (uint t = from + team; t < to; t += teams) {
                uint page = table[t / PAGE_TOKENS];
                uint64_t value = ((uint64_t(page) * 2 * kv_heads + kv_heads + kv_head) * PAGE_TOKENS
                    + t % PAGE_TOKENS) * HEAD_DIM;
                vec4 v = load_four(value + i * 4);
                [[unroll]] for (uint g = 0; g < GROUP; g++)
                    sum[g] = fma(vec4(scores[g * SPLIT + t]), v, sum[g]);
            }
        }
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            barrier();
            mixed[thread] = sum[g];
            barrier();
            if (team == 0 && i < FOURS) {
                vec4 total = mixed[lane];
                for (uint other = 1; other < teams; other++)
                    total += mixed[other * VALUE_LANES + lane];
                Floats4(target + uint64_t(g) * splits * record * 4).at[i] = total;
            }
        }
    }
}
