// What all kernels share: a vector of floats as wide as this CPU's registers, bf16 as it lies in memory, and the
// small matrix product that every one of them is built on. Knows nothing of models.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using Int = int64_t;
typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef uint32_t BitVec __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(LANES * 2)));

struct BFloat16 {
    uint16_t bits;

    operator float() const {
        uint32_t wide = uint32_t(bits) << 16;
        float value;
        memcpy(&value, &wide, 4);
        return value;
    }

    // To nearest, ties to even, as torch rounds; NaN stays NaN.
    static BFloat16 of(float value) {
        uint32_t wide;
        memcpy(&wide, &value, 4);
        uint32_t rounded = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16;
        return {uint16_t(value != value ? 0x7FC0 : rounded)};
    }
};

inline float narrow(float value, float) { return value; }
inline BFloat16 narrow(float value, BFloat16) { return BFloat16::of(value); }

inline Vec load(const float* from) {
    Vec value;
    memcpy(&value, from, sizeof value);
    return value;
}

inline Vec load(const BFloat16* from) {
    HalfVec half;
    memcpy(&half, from, sizeof half);
    BitVec wide = __builtin_convertvector(half, BitVec) << 16;
    Vec value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

inline void store(float* to, Vec value) { memcpy(to, &value, sizeof value); }

// As BFloat16::of, all lanes at once.
inline BitVec rounded_bits(Vec value) {
    BitVec bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;
    return value != value ? BitVec{} + 0x7FC00000u : bits;
}

inline Vec rounded(Vec value) {
    const BitVec bits = rounded_bits(value);
    memcpy(&value, &bits, sizeof bits);
    return value;
}

inline void store(BFloat16* to, Vec value) {
    const HalfVec half = __builtin_convertvector(rounded_bits(value) >> 16, HalfVec);
    memcpy(to, &half, sizeof half);
}

inline float total(Vec value) {
    float lanes[LANES];
    memcpy(lanes, &value, sizeof lanes);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

// e^x for x <= 0, to about 2 units in the last place; what underflows, -inf included, is 0.
inline Vec exp_of(Vec x) {
    const Vec low = x < -87.0f ? Vec{} - 87.0f : x;
    const Vec magic = Vec{} + 12582912.0f;
    const Vec whole = (low * 1.44269504f + magic) - magic;
    const Vec r = low - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    IntVec bits = (__builtin_convertvector(whole, IntVec) + 127) << 23;
    Vec power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? Vec{} : p * power;
}

// `count` numbers as floats, and zeros up to the next whole vector.
template <class T>
inline void widen(const T* from, float* to, Int count) {
    for (Int i = 0; i < count; ++i) to[i] = from[i];
    for (Int i = count; i % LANES; ++i) to[i] = 0;
}

inline Int padded(Int count) { return (count + LANES - 1) / LANES * LANES; }

constexpr int ROWS = 4;     // rows of activations and
constexpr int COLUMNS = 3;  // of weights in one tile: their sums fill most of 16 registers
constexpr int LONE_COLUMNS = 4;  // beside a single row: a sum waits for its last addition, so several go on side by side
constexpr int MOST_ROWS = 8;  // in a tile of one column, for weights that are widened on the way: once for all rows

// sums[m][n] += x[m] . w[n] for a tile, lane by lane; `depth` is a multiple of LANES. The order of additions of
// one sum does not depend on what else is in the tile, so a request's result does not depend on its neighbours.
template <int M, int N, class W>
inline void tile(const float* x, Int x_stride, const W* w, Int w_stride, Int depth, Vec* sums, Int sums_stride) {
    Vec acc[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) acc[m][n] = sums[m * sums_stride + n];
    for (Int k = 0; k < depth; k += LANES) {
        Vec b[N];
        for (int n = 0; n < N; ++n) {
            // Rows are short, and the processor's own prefetching stops at each row's end.
            if constexpr (std::is_same_v<W, BFloat16>) __builtin_prefetch(w + (n + N) * w_stride + k);
            b[n] = load(w + n * w_stride + k);
        }
        for (int m = 0; m < M; ++m) {
            Vec a = load(x + m * x_stride + k);
            for (int n = 0; n < N; ++n) acc[m][n] += a * b[n];
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sums[m * sums_stride + n] = acc[m][n];
}

// sums[m][n] += x[m] . w[n] for M rows and all n < n_count.
template <int M, class W>
inline void some_rows(const float* x, Int x_stride, const W* w, Int w_stride, Int n_count, Int depth, Vec* sums, Int ss) {
    constexpr int N = M == 1 ? LONE_COLUMNS : M <= ROWS ? COLUMNS : M <= 6 ? 2 : 1;
    Int n = 0;
    for (; n + N <= n_count; n += N) tile<M, N>(x, x_stride, w + n * w_stride, w_stride, depth, sums + n, ss);
    for (; n < n_count; ++n) tile<M, 1>(x, x_stride, w + n * w_stride, w_stride, depth, sums + n, ss);
}

// The same for all m < m_count, in tiles of at most MOST rows.
template <int MOST, class W>
inline void all_rows(const float* x, Int x_stride, Int m_count, const W* w, Int w_stride, Int n_count, Int depth,
                     Vec* sums, Int ss) {
    Int m = 0;
    for (; m + MOST <= m_count; m += MOST)
        some_rows<MOST>(x + m * x_stride, x_stride, w, w_stride, n_count, depth, sums + m * ss, ss);
    x += m * x_stride, sums += m * ss;
    switch (m_count - m) {
        case 7: return some_rows<7>(x, x_stride, w, w_stride, n_count, depth, sums, ss);
        case 6: return some_rows<6>(x, x_stride, w, w_stride, n_count, depth, sums, ss);
        case 5: return some_rows<5>(x, x_stride, w, w_stride, n_count, depth, sums, ss);
        case 4: return some_rows<4>(x, x_stride, w, w_stride, n_count, depth, sums, ss);
        case 3: return some_rows<3>(x, x_stride, w, w_stride, n_count, depth, sums, ss);
        case 2: return some_rows<2>(x, x_stride, w, w_stride, n_count, depth, sums, ss);
        case 1: return some_rows<1>(x, x_stride, w, w_stride, n_count, depth, sums, ss);
    }
}

// sums[m][n] += x[m] . w[n] for all m < m_count and n < n_count.
inline void multiply(const float* x, Int x_stride, Int m_count, const BFloat16* w, Int w_stride, Int n_count, Int depth,
                     Vec* sums, Int ss) {
    all_rows<MOST_ROWS>(x, x_stride, m_count, w, w_stride, n_count, depth, sums, ss);
}

inline void multiply(const float* x, Int x_stride, Int m_count, const float* w, Int w_stride, Int n_count, Int depth,
                     Vec* sums, Int ss) {
    Int n = 0;
    for (; n + COLUMNS <= n_count; n += COLUMNS)  // a few columns stay in the first-level cache for all rows
        all_rows<ROWS>(x, x_stride, m_count, w + n * w_stride, w_stride, COLUMNS, depth, sums + n, ss);
    all_rows<ROWS>(x, x_stride, m_count, w + n * w_stride, w_stride, n_count - n, depth, sums + n, ss);
}
