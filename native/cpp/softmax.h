// One step of the online softmax: scores of a tile of keys become weights (FlashAttention's running maximum and sum, arXiv
// 2205.14135). Of one line, or of 16 together with the very same results. Knows nothing of the cache.
//
// Weights are powers of two: scores are multiplied with a positive factor that has log2(e) in it.
#pragma once

#include "tiles.h"

#if defined(BF16_DOTS)
constexpr Int KEYS = 64;  // keys taken together
#else
constexpr Int KEYS = 48;
#endif

// 2^(score * factor - base), where the base is the highest score times the factor.
inline Vec weight_of(Vec score, float factor, Vec base) {
#if defined(__AVX512F__)  // said, so that both forms of `softmax` round alike
    return exp2_of(Vec(_mm512_fmsub_ps(__m512(score), _mm512_set1_ps(factor), __m512(base))));
#else
    return exp2_of(score * factor - base);
#endif
}

inline IntVec lane_numbers() {
    IntVec numbers;
    for (int i = 0; i < LANES; ++i) numbers[i] = i;
    return numbers;
}

// What a line has met so far: its highest score times the factor, the sum of its weights, and `out [width]` of values.
struct Line {
    float &highest, &sum;
    float* out;
    Int width;

    void raise(float most) const {
        const Vec decay = exp2_of(Vec{} + (highest - most));
        highest = most;
        sum *= decay[0];
        for (Int d = 0; d < width; d += LANES) store(out + d, load(out + d) * decay);
    }
};

// The weights of `scores [KEYS]`, of which the line sees [from, to), at least one.
template <class Weight>
inline void softmax(float factor, const float* scores, Int from, Int to, const Line& line, Weight* weights) {
    constexpr Int VECTORS = KEYS / LANES;
    Vec s[VECTORS], most = Vec{} - INFINITY, sum{};
    for (Int i = 0; i < VECTORS; ++i) s[i] = load(scores + i * LANES);
    if (from > 0 || to < KEYS)
        for (Int i = 0; i < VECTORS; ++i) {
            const IntVec key = lane_numbers() + int32_t(i * LANES);
            s[i] = ((key >= int32_t(from)) & (key < int32_t(to))) ? s[i] : Vec{} - INFINITY;
        }
    for (const Vec& some : s) most = some > most ? some : most;
    const float highest = largest(most) * factor;
    if (highest > line.highest) line.raise(highest);
    const Vec base = Vec{} + (line.highest == -INFINITY ? 0.0f : line.highest);
    for (Int i = 0; i < VECTORS; ++i) {
        const Vec weight = weight_of(s[i], factor, base);
        store(weights + i * LANES, weight);
        sum += weight;
    }
    line.sum += total(sum);
}

#if defined(BF16_TILES)
inline bool any(IntVec lanes) { return _mm512_test_epi32_mask(__m512i(lanes), __m512i(lanes)); }

// 16 lines: of each what a Line has, `out` being [16, width].
struct LineGroup {
    float *highest, *sum, *out;
    Int width;

    // To scores that are higher in some lanes.
    void raise(Vec scores) const {
        const Vec before = load(highest), most = scores > before ? scores : before;
        const Vec decay = scores > before ? exp2_of(before - most) : Vec{} + 1.0f;  // of nothing but -inf it were not a number
        store(highest, most), store(sum, load(sum) * decay);
        for (Int line = 0; line < TILE_ROWS; ++line)
            for (Int d = 0; d < width; d += LANES) store(out + line * width + d, load(out + line * width + d) * decay[line]);
    }
};

// The highest of KEYS scores in each lane: of eight parts first, which do not wait for one another.
inline Vec highest_of(const float* scores) {
    constexpr Int PARTS = 8;
    Vec most[PARTS];
    for (Int i = 0; i < PARTS; ++i) most[i] = load(scores + i * LANES);
    for (Int key = PARTS; key < KEYS; key += PARTS)
        for (Int i = 0; i < PARTS; ++i) {
            const Vec some = load(scores + (key + i) * LANES);
            most[i] = some > most[i] ? some : most[i];
        }
    for (Int i = 1; i < PARTS; ++i) most[0] = most[i] > most[0] ? most[i] : most[0];
    return most[0];
}

// As `softmax`, of each line: `scores` are [KEYS, 16], weights [16, KEYS]. Line i sees keys [from[i], to[i]), which may be
// none. Weights are added in the order of `total`.
inline void softmax(float factor, float* scores, IntVec from, IntVec to, const LineGroup& lines, BFloat16* weights) {
    if (any((from > 0) | (to < int32_t(KEYS))))
        for (int32_t key = 0; key < KEYS; ++key) {
            float* at = scores + key * LANES;
            store(at, (from <= key) & (to > key) ? load(at) : Vec{} - INFINITY);
        }
    const Vec most = highest_of(scores) * factor;
    if (any(most > load(lines.highest))) lines.raise(most);
    Vec base = load(lines.highest), pairs[KEYS / 2], sums[LANES];
    base = base == Vec{} - INFINITY ? Vec{} : base;  // of lines that have seen nothing yet, or nothing but -inf
    for (Int i = 0; i < LANES; i += 2) {
        sums[i] = sums[i + 1] = Vec{};
        for (Int key = i; key < KEYS; key += LANES) {
            const float* at = scores + key * LANES;
            const Vec first = weight_of(load(at), factor, base), second = weight_of(load(at + LANES), factor, base);
            pairs[key / 2] = rounded_pairs(first, second);
            sums[i] += first, sums[i + 1] += second;
        }
    }
    for (Int half = LANES / 2; half; half /= 2)
        for (Int i = 0; i < half; ++i) sums[i] += sums[i + half];
    store(lines.sum, load(lines.sum) + sums[0]);
    for (Int key = 0; key < KEYS; key += TILE_DEPTH) {
        transpose(pairs + key / 2);
        for (Int line = 0; line < TILE_ROWS; ++line) memcpy(weights + line * KEYS + key, pairs + key / 2 + line, sizeof(Vec));
    }
}
#endif
