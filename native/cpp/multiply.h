// Sums of products, x[m] . w[n], a few rows of x and of w at a time. Where w comes from, and in what precision, is its
// source's business. Knows nothing of models.
#pragma once

#include "common.h"

// A source gives `VECTORS` vectors of one row of w, which cover `STEP` inputs, in the order of x.

// Floats; in whatever order x is.
struct Floats {
    static constexpr Int STEP = LANES;
    static constexpr int VECTORS = 1;
    static constexpr int ROWS = LANES == 16 ? 8 : 4;  // rows of x whose sums fit the registers beside three of w
    const float* data;
    Int stride;

    struct Some {
        const float* at;
        Vec vector(int) const { return load(at); }
    };
    Some some(Int n, Int k, int) const { return {data + n * stride + k}; }
};

// bf16 as it lies in memory, for an x in pairs.
struct Halves {
    static constexpr Int STEP = PAIR;
    static constexpr int VECTORS = 2;
    static constexpr int ROWS = 8;
    const BFloat16* data;
    Int stride;

    struct Some {
        Pair pair;
        Vec vector(int number) const { return number ? pair.odd : pair.even; }
    };

    Some some(Int n, Int k, int columns) const {
        const BFloat16* at = data + n * stride + k;
        // Rows are short, and the processor's own prefetching stops at each row's end.
        __builtin_prefetch(at + columns * stride);
        return {load_pair(at)};
    }
};

// A value that is read from memory once, not anew by every multiplication.
inline Vec once(Vec value) {
#if defined(__AVX__)
    asm("" : "+v"(value));
#endif
    return value;
}

// How many rows of w stand beside M rows of x in one tile: their sums fill most of the registers, and a sum that waits
// for its last addition has others to wait beside it.
template <class Source>
constexpr int columns_beside(int rows) {
    if constexpr (LANES == 16) return rows == 1 ? 8 : rows <= 4 ? 6 : rows <= 6 ? 4 : 3;
    return rows == 1 ? 4 : rows <= 4 ? 3 : rows <= 6 ? 2 : 1;
}

// sums[m][n] += x[m] . w[n] over inputs [from, to), lane by lane. The order of additions of one sum does not depend on
// what else is in the tile, so a request's result does not depend on its neighbours.
template <int M, int N, class Source>
inline void tile(const float* x, Int x_stride, const Source& w, Int column, Int from, Int to, Vec* sums, Int stride) {
    Vec acc[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) acc[m][n] = sums[m * stride + n];
    for (Int k = from; k < to; k += Source::STEP) {
        typename Source::Some some[N];
        for (int n = 0; n < N; ++n) some[n] = w.some(column + n, k, N);
#pragma GCC unroll 8
        for (int v = 0; v < Source::VECTORS; ++v) {
            Vec b[N];
            for (int n = 0; n < N; ++n) b[n] = some[n].vector(v);
            for (int m = 0; m < M; ++m) {
                const Vec a = once(load(x + m * x_stride + k + v * LANES));
                for (int n = 0; n < N; ++n) acc[m][n] += a * b[n];
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sums[m * stride + n] = acc[m][n];
}

template <int M, class Source>
inline void some_rows(const float* x, Int x_stride, const Source& w, Int columns, Int from, Int to, Vec* sums, Int stride) {
    constexpr int N = columns_beside<Source>(M);
    Int n = 0;
    for (; n + N <= columns; n += N) tile<M, N>(x, x_stride, w, n, from, to, sums + n, stride);
    if constexpr (N > 2)
        for (; n + 2 <= columns; n += 2) tile<M, 2>(x, x_stride, w, n, from, to, sums + n, stride);
    for (; n < columns; ++n) tile<M, 1>(x, x_stride, w, n, from, to, sums + n, stride);
}

// sums[m][n] += x[m] . w[n] over inputs [from, to) for all m < rows and n < columns. `to` is a multiple of the
// source's step from `from`.
template <class Source>
inline void multiply(const float* x, Int x_stride, Int rows, const Source& w, Int columns, Int from, Int to, Vec* sums,
                     Int stride) {
    constexpr int MOST = Source::ROWS;
    for (; rows >= MOST; rows -= MOST, x += MOST * x_stride, sums += MOST * stride)
        some_rows<MOST>(x, x_stride, w, columns, from, to, sums, stride);
    switch (rows) {
        case 7: return some_rows<7>(x, x_stride, w, columns, from, to, sums, stride);
        case 6: return some_rows<6>(x, x_stride, w, columns, from, to, sums, stride);
        case 5: return some_rows<5>(x, x_stride, w, columns, from, to, sums, stride);
        case 4: return some_rows<4>(x, x_stride, w, columns, from, to, sums, stride);
        case 3: return some_rows<3>(x, x_stride, w, columns, from, to, sums, stride);
        case 2: return some_rows<2>(x, x_stride, w, columns, from, to, sums, stride);
        case 1: return some_rows<1>(x, x_stride, w, columns, from, to, sums, stride);
    }
}
