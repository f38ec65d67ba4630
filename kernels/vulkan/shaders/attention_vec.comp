// Attention of single rows: a workgroup takes one row, one KV head with the query heads that share
// it, and SPLIT positions of the sequence. Splits have fixed boundaries, so that a row's result depends
// on nothing but its own sequence. Where a row sees one split, its workgroup writes the result. Where
// it sees several, each leaves per query head the mixture of the values, the largest score and the sum
// of the exponentials, and counts itself; the last one to do so puts the splits together, in order. No
// workgroup waits for another.
//
// With ENTRY, every row is the only one of its sequence, and queries, keys and values are as their
// products left them: a workgroup norms and turns its queries, and the one of the split that the row
// itself lies in stores the row's key and value before it reads them back.
#include "common.glsl"
#include "functions.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint HEAD_DIM = 128;
// Query heads that share a KV head.
layout(constant_id = 2) const uint GROUP = 4;
layout(constant_id = 3) const bool HALF = true;
layout(constant_id = 4) const uint PAGE_TOKENS = 16;
layout(constant_id = 5) const bool CAUSAL = true;
// Threads next to each other that share a token's key: a power of two, at most a subgroup, which
// divides the number of pieces.
layout(constant_id = 6) const uint KEY_LANES = 4;
// The same for a token's values, which need not divide.
layout(constant_id = 7) const uint VALUE_LANES = 16;
// Subgroups of the workgroup, and query heads whose values they put together at once.
layout(constant_id = 8) const uint SUBGROUPS = 8;
layout(constant_id = 9) const uint HEADS_AT_ONCE = 4;
// Vectors of four in a piece, which one load brings: two where keys and values are halves and heads
// whole pieces of 16 bytes.
layout(constant_id = 10) const uint PIECE = 2;

#ifdef ENTRY
// As in attention_in.comp.
layout(constant_id = 11) const uint LANES = 32;
layout(constant_id = 12) const bool HALVES = false;
layout(constant_id = 13) const bool NORM_QUERY = false;
layout(constant_id = 14) const bool NORM_KEY = false;
#include "heads.glsl"
#endif

layout(push_constant, std430) uniform Push {
    uint64_t query;
#ifdef ENTRY
    uint64_t key;
    uint64_t value;
    uint64_t query_weight;
    uint64_t key_weight;
    uint64_t turns;
#else
    uint64_t positions;
    uint64_t row_sequences;
#endif
    uint64_t sequences;
    uint64_t page_table;
    uint64_t pages;
    uint64_t out_;
    // Parts of rows that see several splits, from row `first_row` on.
    uint64_t parts;
    // One for each row and KV head, zero before and after.
    uint64_t counters;
    uint kv_heads;
    uint splits;
    uint first_row;
    float scale;
    float softcap;
    // Positions that a query sees, itself included; 0: all.
    uint window;
#ifdef ENTRY
    // Turned pairs of a head; the highest bit: long sequences have other angles.
    uint pairs;
    float eps;
#endif
};

// What workgroups hand to each other.
layout(buffer_reference, std430, buffer_reference_align = 16) coherent buffer Parts { vec4 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) coherent buffer Counter { uint at; };

const uint SPLIT = 256;
const uint FOURS = HEAD_DIM / 4;
const uint PIECES = FOURS / PIECE;
// Tokens that a thread loads at once.
const uint AT_ONCE = 4;
// Bytes of a head of a token.
const uint ROW_BYTES = HEAD_DIM * (HALF ? 2 : 4);
const uint PIECE_BYTES = ROW_BYTES / PIECES;
// Vectors of a query head's part: mixed values, then largest score and sum.
const uint RECORD = FOURS + 1;

shared vec4 queries[GROUP * FOURS];
shared float scores[GROUP * SPLIT];
shared vec4 mixed[SUBGROUPS * HEADS_AT_ONCE * FOURS];
// Per query head: largest score, sum of the exponentials.
shared vec2 weights[GROUP];
shared uint table[SPLIT + 1];
shared uint arrived;

// Tokens of the first page that lie before the split.
uint shift;

// A piece as it lies in memory. Loads run ahead of what is done with them: they are unpacked late.
uvec4 load_piece(uint64_t at) {
    if (HALF && PIECE == 1) return uvec4(Words2(at).at[0], 0, 0);
    return Words4(at).at[0];
}

void unpack(uvec4 bits, out vec4 piece[PIECE]) {
    if (HALF) {
        piece[0] = vec4(unpackHalf2x16(bits.x), unpackHalf2x16(bits.y));
        if (PIECE == 2) piece[PIECE - 1] = vec4(unpackHalf2x16(bits.z), unpackHalf2x16(bits.w));
    } else {
        piece[0] = uintBitsToFloat(bits);
    }
}

// Address of a token's key (plane: KV head) or value (kv_heads further). Tokens count from the split.
uint64_t head_at(uint token, uint plane) {
    token += shift;
    uint page = table[token / PAGE_TOKENS] * 2 * kv_heads + plane;
    return pages + uint64_t(page * PAGE_TOKENS + token % PAGE_TOKENS) * ROW_BYTES;
}

// Scores of the tokens from..to.
void score(uint kv_head, uint from, uint to) {
    uint lane = gl_LocalInvocationIndex % KEY_LANES, team = gl_LocalInvocationIndex / KEY_LANES;
    uint teams = gl_WorkGroupSize.x / KEY_LANES;
    for (uint start = from; start < to; start += teams * AT_ONCE) {
        uint first = start + team;
        uint64_t key[AT_ONCE];
        uvec4 ahead[AT_ONCE];
        float sum[AT_ONCE * GROUP];
        // Past the end a thread loads the last one again, so that all loads go out together.
        [[unroll]] for (uint n = 0; n < AT_ONCE; n++) {
            key[n] = head_at(min(first + n * teams, to - 1), kv_head) + lane * PIECE_BYTES;
            ahead[n] = load_piece(key[n]);
        }
        [[unroll]] for (uint n = 0; n < AT_ONCE * GROUP; n++) sum[n] = 0.0;
        [[unroll]] for (uint turn = 0; turn < PIECES / KEY_LANES; turn++) {
            uint i = turn * KEY_LANES + lane;
            uvec4 now[AT_ONCE];
            vec4 k[AT_ONCE][PIECE];
            [[unroll]] for (uint n = 0; n < AT_ONCE; n++) {
                now[n] = ahead[n];
                key[n] += KEY_LANES * PIECE_BYTES;
                if (turn + 1 < PIECES / KEY_LANES) ahead[n] = load_piece(key[n]);
            }
            [[unroll]] for (uint n = 0; n < AT_ONCE; n++) unpack(now[n], k[n]);
            [[unroll]] for (uint g = 0; g < GROUP; g++) {
                [[unroll]] for (uint p = 0; p < PIECE; p++) {
                    vec4 q = queries[g * FOURS + i * PIECE + p];
                    [[unroll]] for (uint n = 0; n < AT_ONCE; n++) {
                        vec4 x = k[n][p];
                        uint s = n * GROUP + g;
                        sum[s] = fma(q.x, x.x, fma(q.y, x.y, fma(q.z, x.z, fma(q.w, x.w, sum[s]))));
                    }
                }
            }
        }
        [[unroll]] for (uint n = 0; n < AT_ONCE * GROUP; n++) {
            float total = sum[n];
            [[unroll]] for (uint step = 1; step < KEY_LANES; step *= 2)
                total += subgroupShuffleXor(total, step);
            uint t = first + n / GROUP * teams;
            if (n % KEY_LANES == lane && t < to) {
                total *= scale;
                if (softcap != 0.0) total = softcap * bounded_tanh(total / softcap);
                scores[n % GROUP * SPLIT + t] = total;
            }
        }
    }
}

// Scores become exponentials; a subgroup takes a head's.
void weigh(uint from, uint to) {
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
        if (subgroupElect()) weights[g] = vec2(most, sum);
    }
}

// Values that come next.
uvec4 ahead_values[AT_ONCE];

// Loads a piece of the values of the tokens `first`, `first + teams`…, the last one again past the end.
void load_values(uint kv_head, uint first, uint teams, uint to, uint piece) {
    [[unroll]] for (uint n = 0; n < AT_ONCE; n++) {
        uint64_t at = head_at(min(first + n * teams, to - 1), kv_heads + kv_head);
        ahead_values[n] = load_piece(at + min(piece, PIECES - 1) * PIECE_BYTES);
    }
}

// Values mixed for the heads from `head` on, a sum for each subgroup in `mixed`. The first values were
// loaded before.
void mix(uint kv_head, uint from, uint to, uint head) {
    uint lane = gl_LocalInvocationIndex % VALUE_LANES, team = gl_LocalInvocationIndex / VALUE_LANES;
    uint teams = gl_WorkGroupSize.x / VALUE_LANES;
    for (uint turn = 0; turn < (PIECES + VALUE_LANES - 1) / VALUE_LANES; turn++) {
        uint i = turn * VALUE_LANES + lane;
        if (head + turn != 0) load_values(kv_head, from + team, teams, to, i);
        vec4 sum[HEADS_AT_ONCE][PIECE];
        [[unroll]] for (uint g = 0; g < HEADS_AT_ONCE; g++)
            [[unroll]] for (uint p = 0; p < PIECE; p++) sum[g][p] = vec4(0.0);
        for (uint first = from + team; first < to; first += teams * AT_ONCE) {
            uvec4 now[AT_ONCE];
            [[unroll]] for (uint n = 0; n < AT_ONCE; n++) now[n] = ahead_values[n];
            uint next = first + teams * AT_ONCE;
            if (next < to) load_values(kv_head, next, teams, to, i);
            [[unroll]] for (uint n = 0; n < AT_ONCE; n++) {
                uint t = first + n * teams;
                vec4 v[PIECE];
                unpack(now[n], v);
                [[unroll]] for (uint g = 0; g < HEADS_AT_ONCE; g++) {
                    float weight = t < to ? scores[min(head + g, GROUP - 1) * SPLIT + t] : 0.0;
                    [[unroll]] for (uint p = 0; p < PIECE; p++)
                        sum[g][p] = fma(vec4(weight), v[p], sum[g][p]);
                }
            }
        }
        [[unroll]] for (uint g = 0; g < HEADS_AT_ONCE; g++) {
            [[unroll]] for (uint p = 0; p < PIECE; p++) {
                vec4 total = sum[g][p];
                // Teams of a subgroup.
                for (uint step = VALUE_LANES; step < gl_SubgroupSize; step *= 2)
                    total += subgroupShuffleXor(total, step);
                if (gl_SubgroupInvocationID < VALUE_LANES && i < PIECES)
                    mixed[(gl_SubgroupID * HEADS_AT_ONCE + g) * FOURS + i * PIECE + p] = total;
            }
        }
    }
}

// Puts the parts of a row's splits together, in order.
void join(uint64_t part, uint64_t target, uint first, uint end) {
    for (uint i = gl_LocalInvocationIndex; i < GROUP * FOURS; i += gl_WorkGroupSize.x) {
        uint at = i / FOURS * splits * RECORD, four = i % FOURS;
        float most = -1e30, total = 0.0;
        for (uint s = first; s < end; s++) most = max(most, Parts(part).at[at + s * RECORD + FOURS].x);
        vec4 sum = vec4(0.0);
        [[unroll]] for (uint s = first; s < end; s++) {
            vec2 weight = Parts(part).at[at + s * RECORD + FOURS].xy;
            float factor = exp(weight.x - most);
            sum = fma(Parts(part).at[at + s * RECORD + four], vec4(factor), sum);
            total = fma(weight.y, factor, total);
        }
        Floats4(target).at[i] = sum / total;
    }
}

#ifdef ENTRY
// Makes the queries ready, and if the row lies in this workgroup's split, its key and value.
void enter(uint row, uint kv_head, Words sequence, uint position, bool own) {
    uint all = pairs & 0x7fffffff;
    uint64_t table = turns_table(turns, all, pairs != all ? sequence.at[5] : 0);
    for (uint head = gl_SubgroupID; head < GROUP + (own ? 2 : 0); head += gl_NumSubgroups) {
        bool is_query = head < GROUP, is_value = head == GROUP + 1;
        uint turned = is_value ? 0 : all;
        uint64_t before = uint64_t(row) * kv_heads + kv_head;
        if (is_query) before = before * GROUP + head;
        read_head((is_query ? query : is_value ? value : key) + before * HEAD_DIM * 4, turned);
        if (is_query ? NORM_QUERY : NORM_KEY && !is_value) norm_head(is_query ? query_weight : key_weight, eps);
        if (turned != 0) turn_head(table, turned, position);
        if (is_query) {
            [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
                if (pair_of(n) >= HALF_DIM) continue;
                [[unroll]] for (uint i = 0; i < 2; i++)
                    queries[head * FOURS + places[n][i] / 4][places[n][i] % 4] = elements[n][i];
            }
        } else {
            uint page = Words(page_table).at[sequence.at[3] + position / PAGE_TOKENS];
            uint plane = (is_value ? kv_heads : 0) + kv_head, slot = position % PAGE_TOKENS;
            store_head(pages, kv_element(page, plane, slot, kv_heads, PAGE_TOKENS, HEAD_DIM), turned);
        }
    }
    // Seen by all threads of the workgroup after its next barrier.
    groupMemoryBarrier();
}
#endif

void main() {
    uint threads = gl_WorkGroupSize.x, thread = gl_LocalInvocationIndex;
    uint kv_head = gl_WorkGroupID.x, split = gl_WorkGroupID.y, row = first_row + gl_WorkGroupID.z;
#ifdef ENTRY
    Words sequence = Words(sequences + row * 24);
    uint position = sequence.at[2];
#else
    uint position = Words(positions).at[row];
    Words sequence = Words(sequences + Words(row_sequences).at[row] * 24);
#endif
    uint end = CAUSAL ? position + 1 : sequence.at[1] + sequence.at[2];
    uint begin = window != 0 && position + 1 > window ? position + 1 - window : 0;
    // Splits that the row sees.
    uint first_split = begin / SPLIT, end_split = (end + SPLIT - 1) / SPLIT;
    if (split < first_split || split >= end_split) return;
    // From here on positions count from the split's first.
    uint from = max(split * SPLIT, begin) - split * SPLIT, to = min(SPLIT, end - split * SPLIT);
    uint heads = kv_heads * GROUP;
    uint64_t at = uint64_t(row) * heads + kv_head * GROUP;
    uint64_t target = out_ + at * HEAD_DIM * 4;
    uint64_t part = parts + (uint64_t(gl_WorkGroupID.z) * heads + kv_head * GROUP) * splits * RECORD * 16;

#ifdef ENTRY
    enter(row, kv_head, sequence, position, split == position / SPLIT);
#else
    for (uint i = thread; i < GROUP * FOURS; i += threads)
        queries[i] = Floats4(query + at * HEAD_DIM * 4).at[i];
#endif
    shift = SPLIT % PAGE_TOKENS == 0 ? 0 : split * SPLIT % PAGE_TOKENS;
    uint first_page = sequence.at[3] + split * SPLIT / PAGE_TOKENS;
    for (uint i = thread; i * PAGE_TOKENS < shift + to; i += threads)
        table[i] = Words(page_table).at[first_page + i];
    barrier();
    score(kv_head, from, to);
    // On their way while the scores become weights.
    load_values(kv_head, from + thread / VALUE_LANES, threads / VALUE_LANES, to, thread % VALUE_LANES);
    barrier();
    weigh(from, to);
    barrier();
    bool whole = end_split - first_split == 1;
    for (uint head = 0; head < GROUP; head += HEADS_AT_ONCE) {
        mix(kv_head, from, to, head);
        barrier();
        for (uint i = thread; i < min(HEADS_AT_ONCE, GROUP - head) * FOURS; i += threads) {
            vec4 total = mixed[i];
            for (uint other = 1; other < SUBGROUPS; other++)
                total += mixed[other * HEADS_AT_ONCE * FOURS + i];
            uint g = head + i / FOURS, four = i % FOURS;
            if (whole) Floats4(target).at[g * FOURS + four] = total / weights[g].y;
            else Parts(part).at[(g * splits + split) * RECORD + four] = total;
        }
        barrier();
    }
    if (whole) return;
    for (uint g = thread; g < GROUP; g += threads)
        Parts(part).at[(g * splits + split) * RECORD + FOURS] = vec4(weights[g], 0.0, 0.0);
    // Parts are there for the device before they are counted, and the last one sees all of them.
    memoryBarrierBuffer();
    barrier();
    if (thread == 0) {
        memoryBarrierBuffer();
        arrived = atomicAdd(Counter(counters + (row * kv_heads + kv_head) * 4).at, 1);
        memoryBarrierBuffer();
    }
    barrier();
    if (arrived != end_split - first_split - 1) return;
    memoryBarrierBuffer();
    if (thread == 0) Counter(counters + (row * kv_heads + kv_head) * 4).at = 0;
    join(part, target, first_split, end_split);
}
