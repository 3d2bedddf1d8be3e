// The products of attention as dot products of bf16: scores of a tile of keys, and what its values add, for a few lines at a
// time. Knows neither tasks nor which keys a line sees.
#pragma once

#include "multiply.h"
#include "value_pairs.h"

#if defined(BF16_DOTS) && !defined(BF16_TILES)
// Two numbers, in each lane.
inline Operand pair_of(const BFloat16* from) {
    int32_t both;
    memcpy(&both, from, sizeof both);
    return in_register(_mm512_set1_epi32(both));
}

// acc[m][n] += lines[m] . pairs[n]: a pair of numbers of each line, which lie `stride` apart, with 16 pairs in a vector.
template <int M, int N>
__attribute__((always_inline)) inline void add_pairs(const BFloat16* lines, Int stride, const BFloat16* pairs, Vec (&acc)[M][N]) {
    Operand some[N];
    for (int n = 0; n < N; ++n) some[n] = operand(pairs + n * PER_VECTOR);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Operand line = pair_of(lines + m * stride);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) acc[m][n] = add_product(acc[m][n], line, some[n]);
    }
}

// A tile of keys at `data`, each number beside the other keys': [pair of numbers][KEYS][2]. So a score is in one lane, and
// nothing has to be added up across lanes; that would take longer than the products.
struct KeyPairs {
    BFloat16* data;
    Int width;

    // `beside` is called for each square of 16 keys and as many pairs.
    template <class Beside>
    void lay(const BFloat16* k, const KeyOffsets& at, Beside beside) const {
        for (Int first = 0; first < KEYS; first += LANES)
            for (Int d = 0; d < width; d += PER_VECTOR) {
                Vec rows[LANES];
                for (Int j = 0; j < LANES; ++j) rows[j] = Vec(operand(k + at.now[first + j] + d));
                beside();
                transpose(rows);
                for (Int pair = 0; pair < LANES; ++pair) store_pairs(rows[pair], d / 2 + pair, first);
            }
    }

    // to[m][j] = q[m] . k[j], for all keys and M lines of queries, which lie one after the other
    template <int M, class Beside>
    void score(const BFloat16* q, float* to, Beside beside) const {
        constexpr int N = KEYS / LANES;
        Vec acc[M][N];
        each<M, N>([&](int m, int n) { acc[m][n] = Vec{}; });
        const BFloat16* keys = data;
        for (Int d = 0; d < width; d += 2, keys += 2 * KEYS) {
            beside();
            add_pairs(q + d, width, keys, acc);
        }
        each<M, N>([&](int m, int n) { store(to + m * KEYS + n * LANES, acc[m][n]); });
    }

  private:
    void store_pairs(Vec pairs, Int pair, Int first) const { memcpy(data + (pair * KEYS + first) * 2, &pairs, sizeof pairs); }
};

// out[m][d] += weights[m] . v[d] over a tile's keys, for M lines and N vectors of the width, from d.
template <int M, int N, class Beside>
inline void add_values(const BFloat16* weights, const ValuePairs& values, Int d, float* out, Beside beside) {
    const Int width = values.width;
    Vec acc[M][N];
    each<M, N>([&](int m, int n) { acc[m][n] = load(out + m * width + d + n * LANES); });
    const BFloat16* pairs = values.data + d * 2;
    for (Int j = 0; j < KEYS; j += 2, pairs += width * 2) {
        beside();
        add_pairs(weights + j, KEYS, pairs, acc);
    }
    each<M, N>([&](int m, int n) { store(out + m * width + d + n * LANES, acc[m][n]); });
}

template <int M, class Beside>
inline void add_values(const BFloat16* weights, const ValuePairs& values, float* out, Beside beside) {
    Int d = 0;
    for (; d + 4 * LANES <= values.width; d += 4 * LANES) add_values<M, 4>(weights, values, d, out, beside);
    for (; d < values.width; d += LANES) add_values<M, 1>(weights, values, d, out, beside);
}
#endif
