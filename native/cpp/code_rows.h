// Blocks of 4-bit codes as operands, and the product of a few rows of them. Knows nothing of layers.
#pragma once

#include "codes.h"

// One block of 64 codes as operands.
#if defined(BF16_DOTS)
struct CodeBlock {
    static constexpr int VECTORS = CODE_BLOCK / PER_VECTOR;
    Operand table;  // rounded, as a weight that is dequantized to bf16; twice, so that an index's fifth bit is free
    Operand bytes;  // each in a half word

    CodeBlock() = default;
    CodeBlock(const uint8_t* from, Vec values, float scale) {
        const __m512 scaled = __m512(values * scale);
        table = Operand(_mm512_cvtne2ps_pbh(scaled, scaled));
        bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }

    template <int V>
    Operand vector() const {
        return _mm512_permutexvar_epi16(V ? bytes : _mm512_srli_epi16(bytes, 4), table);
    }
};
#elif defined(__AVX512F__)
struct CodeBlock {
    static constexpr int VECTORS = CODE_BLOCK / LANES;
    Vec table;
    __m512i first, second;  // a byte in each word, whose lower code is found by its last four bits

    CodeBlock() = default;
    CodeBlock(const uint8_t* from, Vec values, float scale)
        : table(values * scale), first(words(from)), second(words(from + LANES)) {}

    template <int V>
    Vec vector() const {
        const __m512i code = V < 2 ? first : second;
        return Vec(_mm512_permutexvar_ps(V % 2 ? code : _mm512_srli_epi32(code, 4), __m512(table)));
    }

  private:
    static __m512i words(const uint8_t* from) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
};
#endif

#if defined(__AVX512F__)
// 4-bit rows as a source: each lane picks its value from a register.
struct CodeRows {
    using X = Number;
    static constexpr int ROWS = 8;
    static constexpr int PER_VECTOR = ::PER_VECTOR;
    // Bytes, in whole rows, by which memory is asked before it is read: at least what a tile reads meanwhile.
    static constexpr size_t AHEAD = 6144, TILED = 4;
    const uint8_t* data;
    const float* scales;  // [columns, blocks]
    Vec values;
    size_t blocks;

    using Piece = CodeBlock;
    // One block of each of a tile's columns. Moves by addition: whatever else finds its place costs more than it does.
    struct Cursor {
        const uint8_t* data;
        const float* scales;
        Vec values;
        size_t bytes, blocks, ahead;

        __attribute__((always_inline)) CodeBlock piece(size_t n) const {
            const uint8_t* at = data + n * bytes;
            fetch(at + ahead);
            return {at, values, scales[n * blocks]};
        }

        void move(size_t by) { data += by * (CODE_BLOCK / 2), scales += by; }
    };

    Cursor at(Int column, Int k) const {
        const size_t block = size_t(column) * blocks + size_t(k) / CODE_BLOCK, bytes = blocks * (CODE_BLOCK / 2);
        return {data + block * (CODE_BLOCK / 2), scales + block, values, bytes, blocks, std::max(AHEAD / bytes, TILED) * bytes};
    }
};

// Beside sums stand two blocks' operands and what they are made from.
template <>
constexpr int columns_beside<CodeRows>(int rows) {
    return rows <= 2 ? 4 : rows <= 5 ? 3 : 2;
}

// acc[m][n] += x[m] * w[n] for vectors V and on of a block, whose vector V is `b` already; from the first to the last,
// the next vector is looked up between multiplications, for which the processor has other ports. In the end `pieces`
// and `b` are of the next block, `by` from this one.
template <int V, int M, int N>
__attribute__((always_inline)) inline void add_codes(const Number* x, Int step, CodeRows::Cursor& w, size_t by, CodeBlock (&pieces)[N],
                                                     Operand (&b)[N], Vec (&acc)[M][N]) {
    constexpr int LAST = CodeBlock::VECTORS - 1;
    if constexpr (V == LAST - 1) w.move(by);
    Operand next[N];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const auto a = in_register(operand(x + m * PER_VECTOR));
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            if (m == n * (M / 2) / N) {
                next[n] = in_register(pieces[n].template vector<V == LAST ? 0 : V + 1>());
                if constexpr (V == LAST - 1) pieces[n] = w.piece(size_t(n));
            }
            acc[m][n] = add_product(acc[m][n], a, b[n]);
        }
    }
    for (int n = 0; n < N; ++n) b[n] = next[n];
    if constexpr (V < LAST) add_codes<V + 1>(x + step, step, w, by, pieces, b, acc);
}

// As the general one.
template <int M, int N>
inline void tile(const Number* x, Int step, const CodeRows& source, Int column, Int from, Int to, Vec* sums, Int stride,
                 Vec* by_column) {
    Vec acc[M][N];
    each<M, N>([&](int m, int n) { acc[m][n] = Vec{}; });
    if (from) each<M, N>([&](int m, int n) { acc[m][n] = sums[m * stride + n]; });
    CodeRows::Cursor w = source.at(column, from);
    CodeBlock pieces[N];
    Operand b[N];
    for (int n = 0; n < N; ++n) pieces[n] = w.piece(size_t(n)), b[n] = pieces[n].template vector<0>();
    x += from / PER_VECTOR * step;
    for (Int k = from; k < to; k += CODE_BLOCK, x += CodeBlock::VECTORS * step)
        add_codes<0>(x, step, w, k + CODE_BLOCK < to, pieces, b, acc);  // behind the last block, it again
    end_tile(acc, sums, stride, by_column);
}

struct CodeTable {
    Vec values;

    explicit CodeTable(const float* values) : values(load(values)) {}

    // Vectors are `step` numbers apart.
    void pack(const uint8_t* from, float scale, Number* to, Int step = PER_VECTOR) const {
        put<0>(CodeBlock(from, values, scale), to, step);
    }

  private:
    template <int V>
    static void put(const CodeBlock& block, Number* to, Int step) {
        to = Strided::put(block.vector<V>(), to, step);
        if constexpr (V + 1 < CodeBlock::VECTORS) put<V + 1>(block, to, step);
    }
};
#elif defined(__AVX2__)
// Byte shuffles are the one fast table here: they fetch each half of the values, as bf16, for 32 codes at a time.
struct CodeTable {
    __m256i lower, upper;

    explicit CodeTable(const float* values) {
        uint8_t bytes[2][32];
        for (int code = 0; code < 32; ++code) {
            const uint16_t bits = BFloat16::of(values[code % 16]).bits;
            bytes[0][code] = uint8_t(bits), bytes[1][code] = uint8_t(bits >> 8);
        }
        memcpy(&lower, bytes[0], sizeof lower), memcpy(&upper, bytes[1], sizeof upper);
    }

    void pack(const uint8_t* from, float scale, Number* to) const {
        __m256i both;
        memcpy(&both, from, sizeof both);
        // Unpacking works on halves of a register: words are put so that eight bytes in a row end up in one vector.
        both = _mm256_permutevar8x32_epi32(both, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
        const __m256i last4 = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
        const __m256 by = _mm256_set1_ps(scale);
        for (int odd = 0; odd < 2; ++odd) {
            const __m256i code = _mm256_and_si256(odd ? both : _mm256_srli_epi16(both, 4), last4);
            const __m256i low = _mm256_shuffle_epi8(lower, code), high = _mm256_shuffle_epi8(upper, code);
            float* at = to + odd * LANES;
            for (const __m256i sixteen : {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)})
                for (const __m256i bits : {_mm256_unpacklo_epi16(zero, sixteen), _mm256_unpackhi_epi16(zero, sixteen)}) {
                    _mm256_storeu_ps(at, _mm256_mul_ps(_mm256_castsi256_ps(bits), by));
                    at += PAIR;
                }
        }
    }
};
#else
struct CodeTable {
    const float* values;

    explicit CodeTable(const float* values) : values(values) {}

    void pack(const uint8_t* from, float scale, Number* to) const {
        for (Int i = 0; i < CODE_BLOCK; ++i) to[place(i)] = values[i % 2 ? from[i / 2] & 15 : from[i / 2] >> 4] * scale;
    }
};
#endif

