// The sums of eight rows, added up where they are made. A sum's lanes are added in the order of `total`. Knows nothing of
// models.
#pragma once

#include "common.h"

#if defined(__AVX512F__)
constexpr int FOLDED_ROWS = 8;  // whose sums are folded into one vector for each column, two lanes of each row

// In registers, so that the processor adds while it begins the next products; from memory, adding up was a tenth of a prompt.
template <int N>
__attribute__((always_inline)) inline void fold_rows(Vec (&acc)[FOLDED_ROWS][N], Vec* to) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
        Vec halves[4];
#pragma GCC unroll 8
        for (int m = 0; m < 4; ++m) halves[m] = folded<8>(acc[m][n], acc[m + 4][n]);
        to[n] = folded<2>(folded<4>(halves[0], halves[2]), folded<4>(halves[1], halves[3]));
    }
}

// y[m][n], for FOLDED_ROWS rows m and 16 columns n that were folded.
inline void unfold_rows(const Vec* columns, float* y, Int stride) {
    __m512d pairs[8], mixed[8];  // two columns of each row; then, of rows m or m + 1 in turn, four
    for (int i = 0; i < 8; ++i) pairs[i] = __m512d(folded<1>(columns[2 * i], columns[2 * i + 1]));
    for (int i = 0; i < 8; i += 2) {
        mixed[i] = _mm512_unpacklo_pd(pairs[i], pairs[i + 1]);
        mixed[i + 1] = _mm512_unpackhi_pd(pairs[i], pairs[i + 1]);
    }
    for (int odd = 0; odd < 2; ++odd) {
        const __m512d* const from = mixed + odd;
        float* to = y + odd * stride;
        const auto put = [&](__m512d low, __m512d high) {  // four columns of two rows in each
            store(to, Vec(_mm512_shuffle_f64x2(low, high, 0x88)));
            store(to + 2 * stride, Vec(_mm512_shuffle_f64x2(low, high, 0xDD)));
            to += 4 * stride;
        };
        put(_mm512_shuffle_f64x2(from[0], from[2], 0x44), _mm512_shuffle_f64x2(from[4], from[6], 0x44));
        put(_mm512_shuffle_f64x2(from[0], from[2], 0xEE), _mm512_shuffle_f64x2(from[4], from[6], 0xEE));
    }
}
#else
constexpr int FOLDED_ROWS = 0;
#endif
