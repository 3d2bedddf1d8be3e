// Sums of products, x[m] . w[n], a few rows of x and of w at a time. Where w comes from, and in what precision, is its
// source's business. Knows nothing of models.
//
// Rows of x that are multiplied together lie together: the first vector of each, then the second of each, and so on. So
// a tile reads them one after the other, from addresses that differ by constants; `step` is from one vector of a row to
// its next, in numbers.
#pragma once

#include "fold.h"
#include "operand.h"

// A source gives `VECTORS` vectors of one row of w at a time, of `PER_VECTOR` numbers each, in the order of x. Most ask
// memory for what is read later as they give.

// Called before a tile of N rows, from `column`, reads its n-th at k: for a source whose asking is the tile's business.
template <int N, class Source>
__attribute__((always_inline)) inline void ask(const Source&, Int, int, Int) {}

// Floats; in whatever order x is.
struct Floats {
    using X = float;
    static constexpr int ROWS = LANES == 16 ? 8 : 4;  // rows of x whose sums fit the registers beside three of w
    static constexpr int PER_VECTOR = LANES;
    const float* data;
    Int stride;

    struct Piece {
        static constexpr int VECTORS = 1;
        Vec value;

        template <int>
        Vec vector() const {
            return value;
        }
    };

    Piece piece(Int n, Int k) const { return {load(data + n * stride + k)}; }
};

// bf16 as it lies in memory.
struct Halves {
    using X = Number;
    static constexpr int ROWS = 8;
    static constexpr int PER_VECTOR = ::PER_VECTOR;
    static constexpr Int AHEAD = 8;  // rows of w by which memory is asked before it is read
    const BFloat16* data;
    Int stride;
    const BFloat16* asked = data;  // rows that memory is asked for while as many are read: in a cache, themselves

    struct Piece {
        static constexpr int VECTORS = PAIR_VECTORS;
        PackedPair laid;

        template <int V>
        Operand vector() const {
            return laid.vectors[V];
        }
    };

    Piece piece(Int n, Int k) const {
        // Rows are short, and the processor's own prefetching stops at each row's end.
        fetch(asked + n * stride + k);
        return {PackedPair(data + n * stride + k)};
    }
};

// The same, of which whole rows are read, and once. They are read as they lie, line after line, and few rows of x are
// multiplied with one after the other: memory gives one stream faster than several.
struct WholeHalves {
    using X = Number;
    using Piece = Halves::Piece;
    static constexpr int ROWS = Halves::ROWS, PER_VECTOR = Halves::PER_VECTOR;
#if defined(__AVXVNNI__)  // Zen 5
    static constexpr bool ASKED = true;
#else
    // Zen 4: for one or two rows of x its own prefetching was found to be faster than any asking, and for more rows several
    // streams. Asked for near, eight rows took a third longer.
    static constexpr bool ASKED = false;
#endif
    static constexpr int MOST = ASKED ? ROWS : 2;  // rows of x
    static constexpr Int AHEAD = 4096;  // numbers
    const BFloat16* data;
    Int stride;

    Piece piece(Int n, Int k) const { return {PackedPair(data + n * stride + k)}; }
};

// Into the nearest cache: from the next one, lines come too late. Twice: eight rows were found to take 4 % less so. Always
// inline, as `fetch` is.
template <int N>
__attribute__((always_inline)) inline void ask(const WholeHalves& w, Int column, int n, Int k) {
    if constexpr (!WholeHalves::ASKED) return;
    const BFloat16* line = w.data + column * w.stride + N * k + n * LINE;
    fetch_near(line + w.AHEAD), fetch_near(line + w.AHEAD / 2);
}

#if defined(BF16_DOTS)
using Numbers = Halves;
#else
using Numbers = Floats;
#endif

// `what` for each of a tile's M x N sums. Unrolled before the compiler decides which arrays are registers.
template <int M, int N, class Do>
__attribute__((always_inline)) inline void each(Do what) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) what(m, n);
}

// How many rows of w stand beside M rows of x in one tile: their sums fill most of the registers, and a sum that waits
// for its last addition has others to wait beside it.
template <class Source>
constexpr int columns_beside(int rows) {
    if (std::is_same_v<Source, WholeHalves> && rows <= 4) return 1;
    if constexpr (LANES == 16) return rows <= 2 ? 8 : rows <= 4 ? 6 : rows <= 6 ? 4 : 3;
    return rows == 1 ? 4 : rows <= 4 ? 3 : rows <= 6 ? 2 : 1;
}

// acc[m][n] += x[m] * w[n] for vectors V and on of those that a source gives at a time.
template <int V, class Source, int M, int N>
inline void add_vectors(const typename Source::X* x, Int step, const typename Source::Piece (&pieces)[N], Vec (&acc)[M][N]) {
    decltype(pieces[0].template vector<V>()) b[N];
    for (int n = 0; n < N; ++n) b[n] = pieces[n].template vector<V>();
    for (int m = 0; m < M; ++m) {
        const auto a = in_register(operand(x + m * Source::PER_VECTOR));
        for (int n = 0; n < N; ++n) acc[m][n] = add_product(acc[m][n], a, b[n]);
    }
    if constexpr (V + 1 < Source::Piece::VECTORS) add_vectors<V + 1, Source>(x + step, step, pieces, acc);
}

// Where a tile's sums go: lane by lane to `sums`, or to one vector for each column of a whole group of rows.
template <int M, int N>
__attribute__((always_inline)) inline void end_tile(Vec (&acc)[M][N], Vec* sums, Int stride, Vec* by_column) {
    if constexpr (M == FOLDED_ROWS)
        if (by_column) return fold_rows(acc, by_column);
    each<M, N>([&](int m, int n) { sums[m * stride + n] = acc[m][n]; });
}

// sums[m][n] += x[m] . w[n] over inputs [from, to), lane by lane; from input 0 on, whatever was in sums counts as zero.
// The order of additions of one sum does not depend on what else is in the tile, so a request's result does not depend
// on its neighbours.
template <int M, int N, class Source>
inline void tile(const typename Source::X* x, Int step, const Source& w, Int column, Int from, Int to, Vec* sums, Int stride,
                 Vec* by_column) {
    using Piece = typename Source::Piece;
    Vec acc[M][N];
    each<M, N>([&](int m, int n) { acc[m][n] = Vec{}; });
    if (from) each<M, N>([&](int m, int n) { acc[m][n] = sums[m * stride + n]; });
    x += from / Source::PER_VECTOR * step;
    for (Int k = from; k < to; k += Piece::VECTORS * Source::PER_VECTOR, x += Piece::VECTORS * step) {
        for (int n = 0; n < N; ++n) ask<N>(w, column, n, k);
        Piece pieces[N];
        for (int n = 0; n < N; ++n) pieces[n] = w.piece(column + n, k);
        add_vectors<0, Source>(x, step, pieces, acc);
    }
    end_tile(acc, sums, stride, by_column);
}

template <int M, class Source>
inline void some_rows(const typename Source::X* x, Int step, const Source& w, Int columns, Int from, Int to, Vec* sums, Int stride,
                      Vec* by_column) {
    constexpr int N = columns_beside<Source>(M);
    const auto at = [&](Int n) { return by_column ? by_column + n : nullptr; };
    Int n = 0;
    for (; n + N <= columns; n += N) tile<M, N>(x, step, w, n, from, to, sums + n, stride, at(n));
    if constexpr (N > 2)
        for (; n + 2 <= columns; n += 2) tile<M, 2>(x, step, w, n, from, to, sums + n, stride, at(n));
    for (; n < columns; ++n) tile<M, 1>(x, step, w, n, from, to, sums + n, stride, at(n));
}

// As `tile`, for all m < rows and n < columns. `to` lies a whole number of the source's steps from `from`. `by_column`: null,
// unless there are FOLDED_ROWS rows.
template <class Source>
inline void multiply(const typename Source::X* x, Int step, Int rows, const Source& w, Int columns, Int from, Int to, Vec* sums,
                     Int stride, Vec* by_column = nullptr) {
    constexpr int MOST = Source::ROWS;
    for (; rows >= MOST; rows -= MOST, x += MOST * Source::PER_VECTOR, sums += MOST * stride)
        some_rows<MOST>(x, step, w, columns, from, to, sums, stride, by_column);
    switch (rows) {
        case 7: return some_rows<7>(x, step, w, columns, from, to, sums, stride, nullptr);
        case 6: return some_rows<6>(x, step, w, columns, from, to, sums, stride, nullptr);
        case 5: return some_rows<5>(x, step, w, columns, from, to, sums, stride, nullptr);
        case 4: return some_rows<4>(x, step, w, columns, from, to, sums, stride, nullptr);
        case 3: return some_rows<3>(x, step, w, columns, from, to, sums, stride, nullptr);
        case 2: return some_rows<2>(x, step, w, columns, from, to, sums, stride, nullptr);
        case 1: return some_rows<1>(x, step, w, columns, from, to, sums, stride, nullptr);
    }
}
