// Heads on their way to attention: normed, turned by their position, stored in a page. A subgroup of
// LANES threads takes a head of HEAD_DIM elements at a time; HALVES says whether the second element of a
// turned pair lies `pairs` behind the first (else next to it), HALF whether pages hold halves.
#include "pages.glsl"
#include "turns.glsl"

const uint HALF_DIM = HEAD_DIM / 2;
// Pairs of elements that a thread takes.
const uint PER_LANE = (HALF_DIM + LANES - 1) / LANES;

// The head at hand: its pairs, and their places in it. Those past the turned ones lie next to each other.
vec2 elements[PER_LANE];
uvec2 places[PER_LANE];

uint pair_of(uint n) { return gl_SubgroupInvocationID + n * LANES; }

void read_head(uint64_t address, uint turned) {
    Floats from = Floats(address);
    [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
        uint pair = pair_of(n);
        places[n] = HALVES && pair < turned ? uvec2(pair, pair + turned) : uvec2(2 * pair, 2 * pair + 1);
        elements[n] = pair < HALF_DIM ? vec2(from.at[places[n].x], from.at[places[n].y]) : vec2(0.0);
    }
}

// Divides by the root mean square and multiplies by `weight`.
void norm_head(uint64_t weight, float eps) {
    Floats by = Floats(weight);
    float square = 0.0;
    [[unroll]] for (uint n = 0; n < PER_LANE; n++)
        square = fma(elements[n].y, elements[n].y, fma(elements[n].x, elements[n].x, square));
    float factor = inversesqrt(subgroupAdd(square) / float(HEAD_DIM) + eps);
    [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
        if (pair_of(n) >= HALF_DIM) continue;
        elements[n].x = elements[n].x * factor * by.at[places[n].x];
        elements[n].y = elements[n].y * factor * by.at[places[n].y];
    }
}

// Turns `turned` pairs by the angles of a position.
void turn_head(uint64_t table, uint turned, uint position) {
    [[unroll]] for (uint n = 0; n < PER_LANE; n++)
        if (pair_of(n) < turned) elements[n] = turn_pair(table, turned, position, pair_of(n), elements[n]);
}

// Stores the head from element `at` of the pages on.
void store_head(uint64_t pages, uint64_t at, uint turned) {
    [[unroll]] for (uint n = 0; n < PER_LANE; n++) {
        uint pair = pair_of(n);
        if (pair >= HALF_DIM) continue;
        if (HALF) {
            uvec2 bits = uvec2(half_bits(elements[n].x), half_bits(elements[n].y));
            if (HALVES && pair < turned) {
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
