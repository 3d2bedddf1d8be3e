// B h, the second half of a low-rank term: of some rows, or of a prompt's rows in tiles, with the very same sums. Knows neither
// where h is from nor who else is in the batch.
#pragma once

#include "activations.h"

constexpr Int RANKS = 16;  // rows of A that are multiplied together
// Ranks whose part of B h is a sum of its own: as tiles add, where there are such.
#if defined(BF16_TILES)
constexpr Int SUMMED = RANKS;
#else
constexpr Int SUMMED = INT64_MAX;
#endif

// One adapter at one linear layer: A [rank, inputs], B [rank, outputs], and DoRA's gain [outputs] or null. Rank 0 where
// the adapter does not touch the layer.
struct Part {
    const BFloat16* a;
    const BFloat16* b;
    const float* gain;
    Int rank;
    double scaling;
};

// y[t] += B h[t]; its own sum first, so that it is the same wherever it is added. WHOLE: there are no more than SUMMED ranks.
template <int M, int N, bool WHOLE>
void expand_tile(const float* h, Int h_stride, const BFloat16* b, Int outputs, Int ranks, float* y, Int y_stride) {
    Vec sum[M][N], acc[M][N];
    for (Int from = 0, to; from < ranks; from = to) {
        to = WHOLE ? ranks : from + std::min(SUMMED, ranks - from);
        each<M, N>([&](int m, int n) { acc[m][n] = Vec{}; });
        for (Int r = from; r < to; ++r) {
            Vec wide[N];
            for (int n = 0; n < N; ++n) wide[n] = load(b + r * outputs + n * LANES);
            each<M, N>([&](int m, int n) { acc[m][n] += h[m * h_stride + r] * wide[n]; });
        }
        if constexpr (!WHOLE) each<M, N>([&](int m, int n) { sum[m][n] = from ? sum[m][n] + acc[m][n] : acc[m][n]; });
    }
    each<M, N>([&](int m, int n) {
        float* const at = y + m * y_stride + n * LANES;
        store(at, load(at) + (WHOLE ? acc : sum)[m][n]);
    });
}

template <int N, bool WHOLE>
void expand_rows(const float* h, Int h_stride, Int rows, const BFloat16* b, Int outputs, Int ranks, float* y, Int y_stride) {
    constexpr int MOST = LANES == 16 ? (N == 2 ? 8 : 4) : N == 1 ? 4 : 2;  // as many sums as stay in registers
    constexpr int M = WHOLE ? MOST : MOST / 2;
    for (; rows >= M; rows -= M, h += M * h_stride, y += M * y_stride)
        expand_tile<M, N, WHOLE>(h, h_stride, b, outputs, ranks, y, y_stride);
    for (; rows; --rows, h += h_stride, y += y_stride) expand_tile<1, N, WHOLE>(h, h_stride, b, outputs, ranks, y, y_stride);
}

template <int N>
void expand_rows(const float* h, Int h_stride, Int rows, const BFloat16* b, Int outputs, Int ranks, float* y, Int y_stride) {
    if (ranks <= SUMMED) return expand_rows<N, true>(h, h_stride, rows, b, outputs, ranks, y, y_stride);
    if constexpr (SUMMED == RANKS) expand_rows<N, false>(h, h_stride, rows, b, outputs, ranks, y, y_stride);
}

// y[t] += B h[t] for outputs [out, out + outs) of rows that one part covers.
inline void expand(const float* h, Int h_stride, Int rows, const Part& part, Int outputs, Int out, Int outs, float* y,
                   Int y_stride) {
    const BFloat16* b = part.b + out;
    Int n = 0;
    for (; n + 3 * LANES <= outs; n += 3 * LANES) expand_rows<3>(h, h_stride, rows, b + n, outputs, part.rank, y + n, y_stride);
    for (; n + 2 * LANES <= outs; n += 2 * LANES) expand_rows<2>(h, h_stride, rows, b + n, outputs, part.rank, y + n, y_stride);
    for (; n + LANES <= outs; n += LANES) expand_rows<1>(h, h_stride, rows, b + n, outputs, part.rank, y + n, y_stride);
    for (; n < outs; ++n)
        for (Int t = 0; t < rows; ++t) {
            float sum = 0;
            for (Int from = 0, to; from < part.rank; from = to) {
                float value = 0;
                to = from + std::min(SUMMED, part.rank - from);
                for (Int r = from; r < to; ++r) value += h[t * h_stride + r] * float(b[r * outputs + n]);
                sum += value;
            }
            y[t * y_stride + n] += sum;
        }
}

// y[t] = B h[t] for ranks [0, R) of B and M rows, added to what `y` has from other ranks. `read` is called before a line of
// each rank is read.
template <int R, int M, class Read>
void add_ranks(const float* h, Int h_stride, const BFloat16* b, Int outputs, bool first, float* y, Read read) {
    const auto add = [&](Int n) {
        Vec wide[R];
        for (int r = 0; r < R; ++r) wide[r] = load(b + r * outputs + n);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            Vec acc = first ? Vec{} : load(y + m * outputs + n);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) acc += h[m * h_stride + r] * wide[r];
            store(y + m * outputs + n, acc);
        }
    };
    Int n = 0;
    for (; n + LINE <= outputs; n += LINE) {
        read();
#pragma GCC unroll 8
        for (Int i = 0; i < LINE; i += LANES) add(n + i);
    }
    for (; n + LANES <= outputs; n += LANES) add(n);
    for (; n < outputs; ++n)
        for (int m = 0; m < M; ++m) {
            float value = first ? 0 : y[m * outputs + n];
            for (int r = 0; r < R; ++r) value += h[m * h_stride + r] * float(b[r * outputs + n]);
            y[m * outputs + n] = value;
        }
}

#if defined(BF16_TILES)
static_assert(RANKS == TILE_ROWS);

inline __mmask16 first_lanes(Int count) { return __mmask16((1u << std::min(count, TILE_ROWS)) - 1); }

// h of many rows. For 16 of them and RANKS ranks after the other [rank][row] words, whose lower half is a number in bf16 and
// whose upper half is zero: so a tile of them meets one number of B in each pair, and a sum has one chain of additions.
struct ShrunkTiles {
    float* data;
    Int chunks;  // of RANKS ranks

    float* at(Int row, Int chunk) const { return data + (row / GROUP * chunks + chunk) * TILE_SUMS; }

    // Ranks [from, from + ranks) of rows [start, stop) of a group: `found` [rank][row], the first of which is `start`, times the
    // scaling; zeros up to RANKS.
    void put(Int start, Int stop, Int from, Int ranks, const float* found, float scaling) const {
        const __mmask16 rows = __mmask16(first_lanes(stop - start) << start % GROUP);
        for (Int r = 0; r < RANKS; ++r) {
            const BitVec bits = r < ranks ? rounded_bits(load(found + r * TILE_ROWS) * scaling) >> 16 : BitVec{};
            _mm512_mask_storeu_epi32(at(start, from / RANKS) + r * TILE_ROWS, rows, _mm512_maskz_expand_epi32(rows, __m512i(bits)));
        }
    }
};

// Up to RANKS ranks of B at 16 outputs, of which `outs` are there, as a tile: [output][rank] words, as above.
inline void lay_ranks(const BFloat16* b, Int outputs, Int ranks, Int outs, Number* to) {
    Vec rows[RANKS];
    for (Int r = 0; r < RANKS; ++r)
        rows[r] = r < ranks ? Vec(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(outs), b + r * outputs))) : Vec{};
    transpose(rows);
    memcpy(to, rows, sizeof rows);
}

// sums(row, n) += B h, then times the gain, for rows [start, stop), which one part covers: [output][row] are the sums of a row's
// group and the n-th 16 of outputs [out, out + outs). The bits are those of `expand`.
template <class Sums>
void expand_tiles(const ShrunkTiles& h, Int start, Int stop, const Part& part, Int outputs, Int out, Int outs, Buffer<Number>& room,
                  Sums sums) {
    const Int chunks = (part.rank + RANKS - 1) / RANKS;
    room.fit(chunks * TILE_NUMBERS);
    alignas(LINE_BYTES) float found[2][TILE_SUMS];  // of a group, and of the next, which is multiplied meanwhile
    const auto multiply_group = [&](Int row) {
        clear_tile<0>();
        for (Int c = 0; c < chunks; ++c) {
            load_tile<6>(room.data() + c * TILE_NUMBERS, LINE_BYTES), load_tile<4>(h.at(row, c), LINE_BYTES);
            multiply_tiles<0, 6, 4>();
        }
        store_tile<0>(found[row / GROUP % 2]);
    };
    const auto add = [&](Int row, Int n) {
        const __mmask16 from = __mmask16(0xFFFFu << std::max<Int>(start - row, 0)), to = first_lanes(stop - row);
        float* const at = sums(row, n / TILE_ROWS);
        for (Int i = 0; i < std::min(outs - n, TILE_ROWS); ++i) {
            Vec sum = load(at + i * LANES) + load(found[row / GROUP % 2] + i * LANES);
            if (part.gain) sum *= part.gain[out + n + i];
            _mm512_mask_storeu_ps(at + i * LANES, from & to, __m512(sum));
        }
    };
    for (Int n = 0; n < outs; n += TILE_ROWS) {
        for (Int c = 0; c < chunks; ++c)
            lay_ranks(part.b + c * RANKS * outputs + out + n, outputs, part.rank - c * RANKS, outs - n, room.data() + c * TILE_NUMBERS);
        const Int first = start / GROUP * GROUP;
        multiply_group(first);
        for (Int row = first; row < stop; row += GROUP) {
            if (row + GROUP < stop) multiply_group(row + GROUP);
            add(row, n);
        }
    }
}

// sums(row, n) += what has been expanded of a group's rows, then times their gains, for outputs [0, outs): `added` and `gains` are
// where each of 16 rows has them, or null.
template <class Sums>
void add_expanded(const float* const* added, const float* const* gains, Int row, Int outs, Sums sums) {
    const bool gained = std::any_of(gains, gains + TILE_ROWS, [](const float* gain) { return gain; });
    __mmask16 there = 0;
    for (Int r = 0; r < TILE_ROWS; ++r) there |= __mmask16((added[r] != nullptr) << r);
    const auto columns = [&](const float* const* rows, Int n, float otherwise, Vec* to) {
        for (Int r = 0; r < TILE_ROWS; ++r)
            to[r] = rows[r] ? Vec(_mm512_maskz_loadu_ps(first_lanes(outs - n), rows[r] + n)) : Vec{} + otherwise;
        transpose(to);
    };
    for (Int n = 0; there && n < outs; n += TILE_ROWS) {
        Vec plus[TILE_ROWS], by[TILE_ROWS];
        columns(added, n, 0.0f, plus);
        if (gained) columns(gains, n, 1.0f, by);
        float* at = sums(row, n / TILE_ROWS);
        for (Int i = 0; i < std::min(outs - n, TILE_ROWS); ++i, at += TILE_ROWS) {
            const Vec sum = load(at) + plus[i];
            _mm512_mask_storeu_ps(at, there, __m512(gained ? sum * by[i] : sum));
        }
    }
}
#endif
