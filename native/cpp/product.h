// A linear layer's weight, in bf16 or in bitsandbytes' 4 bits, and the product of a few of its rows with activations.
// Sums are floats. Knows nothing of adapters or models.
#pragma once

#include "multiply.h"

constexpr Int BLOCK = 48;    // outputs that a thread takes at most at a time
constexpr Int DIRECT = 16;   // up to so many rows in all, weights become operands in registers, each time anew
// Inputs after which a tile's sums are put aside, so that x stays in the nearest cache.
constexpr Int DEPTH = 3072 / sizeof(Number);
constexpr Int CACHED = 512 * 1024;  // bytes of activations that stay in the second-level cache beside a block
constexpr Int SCALED = 64;   // codes that share a scale, and
constexpr Int NESTED = 256;  // scales that share one of theirs

// 4-bit codes, two in a byte, high half first; block b's scale is scale_values[scale_codes[b]] * scale_scales[b / 256]
// + offset (double quantization, arXiv 2305.14314).
struct Codes {
    const uint8_t* data;
    const float* values;  // what the 16 codes stand for
    const uint8_t* scale_codes;
    const float* scale_values;
    const float* scale_scales;
    float offset;

    float scale(Int block) const { return scale_values[scale_codes[block]] * scale_scales[block / NESTED] + offset; }

    // The scales of `count` blocks from `block`.
    void scales(Int block, Int count, float* to) const {
        Int i = 0;
#if defined(__AVX512F__)
        for (; i + LANES <= count; i += LANES) {
            if ((block + i) / NESTED != (block + i + LANES - 1) / NESTED) {
                for (Int lane = 0; lane < LANES; ++lane) to[i + lane] = scale(block + i + lane);
                continue;
            }
            uint8_t bytes __attribute__((vector_size(LANES)));
            memcpy(&bytes, scale_codes + block + i, sizeof bytes);
            const Vec found = Vec(_mm512_i32gather_ps(__m512i(__builtin_convertvector(bytes, IntVec)), scale_values, 4));
            store(to + i, found * scale_scales[(block + i) / NESTED] + offset);
        }
#endif
        for (; i < count; ++i) to[i] = scale(block + i);
    }

    float weight(Int at) const {
        const uint8_t both = data[at / 2];
        return values[at % 2 ? both & 15 : both >> 4] * scale(at / SCALED);
    }
};

// A weight [outputs, inputs], in bf16 at `halves` or else in 4 bits, and a bias that may be null. `number` is the
// layer's place in an adapter's table.
struct Linear {
    const BFloat16* halves;
    Codes codes;
    const BFloat16* bias;
    Int outputs, inputs, number;

    Int stride() const { return padded(inputs, SCALED); }  // of its activations as they are multiplied
};

// One block of 64 codes as operands.
#if defined(BF16_DOTS)
struct CodeBlock {
    static constexpr int VECTORS = SCALED / WIDE;
    Operand table;  // rounded, as a weight that is dequantized to bf16; twice, so that an index's fifth bit is free
    Operand first, second;  // a code in the last four bits of each half word

    CodeBlock() = default;
    CodeBlock(const uint8_t* from, Vec values, float scale) : first(halves(from)), second(halves(from + WIDE / 2)) {
        table = _mm512_broadcast_i64x4(__m256i(_mm512_cvtneps_pbh(__m512(values * scale))));
    }

    template <int V>
    Operand vector() const {
        return _mm512_permutexvar_epi16(V ? second : first, table);
    }

  private:
    // Two bytes to each eight, in which each half word takes those bits that begin with its code.
    static Operand halves(const uint8_t* from) {
        const Operand bits = _mm512_set1_epi64(0x0008000C00000004);
        return _mm512_multishift_epi64_epi8(bits, _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    }
};
#elif defined(__AVX512F__)
struct CodeBlock {
    static constexpr int VECTORS = SCALED / LANES;
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
    static constexpr int WIDE = ::WIDE;
    static constexpr size_t AHEAD = 24;
    const uint8_t* data;
    const float* scales;  // [columns, inputs / SCALED]
    Vec values;
    size_t inputs;

    using Some = CodeBlock;
    Some some(Int n, Int k) const {
        const uint8_t* at = data + inputs / 2 * n + size_t(k) / 2;
        fetch(at + inputs / 2 * AHEAD);
        return {at, values, scales[inputs / SCALED * n + size_t(k) / SCALED]};
    }
};

// Beside sums, a table and the codes take registers.
template <>
constexpr int columns_beside<CodeRows>(int rows) {
    return rows <= 4 ? 4 : 2;
}

struct CodeTable {
    Vec values;

    explicit CodeTable(const float* values) : values(load(values)) {}

    void lay(const uint8_t* from, float scale, Number* to) const {
        put<0>(CodeBlock(from, values, scale), to);
    }

  private:
    template <int V>
    static void put(const CodeBlock& block, Number* to) {
        const Operand vector = block.vector<V>();
        memcpy(to + V * WIDE, &vector, sizeof vector);
        if constexpr (V + 1 < CodeBlock::VECTORS) put<V + 1>(block, to);
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

    void lay(const uint8_t* from, float scale, Number* to) const {
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

    void lay(const uint8_t* from, float scale, Number* to) const {
        for (Int i = 0; i < SCALED; ++i) to[place(i)] = values[i % 2 ? from[i / 2] & 15 : from[i / 2] >> 4] * scale;
    }
};
#endif

// What one thread needs for a block; kept between calls.
struct Scratch {
    Buffer<Number> weights;
    Buffer<float> scales;
    Buffer<Vec> sums;
};

// Rows [out, out + outs) of a weight, in the form in which `rows` rows of activations are multiplied with them.
class Block {
  public:
    Block(const Linear& linear, Int out, Int outs, Int rows, Scratch& scratch)
        : linear(linear), out(out), outs(outs), scratch(scratch) {
        scratch.sums.fit(GROUP * BLOCK);
        const Int inputs = linear.inputs;
        direct = inputs % (linear.halves ? PAIR : SCALED) == 0 && (rows <= DIRECT || (linear.halves && LAID == 1));
#if !defined(__AVX512F__)
        direct &= linear.halves != nullptr;
#endif
        if (!linear.halves && inputs % SCALED == 0) {
            const Int count = inputs / SCALED;
            scratch.scales.fit(outs * count);
            linear.codes.scales(out * count, outs * count, scratch.scales.data());
        }
        if (direct) return;
        scratch.weights.fit(outs * linear.stride());
        for (Int n = 0; n < outs; ++n) lay_row(n, scratch.weights.data() + n * linear.stride());
    }

    // y[m][n] = x[m] . w[n] for a group of rows from `row`; y has BLOCK columns. Returns how many they are.
    Int products(const Activations& x, Int row, float* y) {
        const Int rows = x.group(row);
        Vec* sums = scratch.sums.data();
        const Int end = direct ? linear.inputs : linear.stride();
        const Int parts = (end + DEPTH - 1) / DEPTH, depth = padded((end + parts - 1) / parts, SCALED);
        for (Int from = 0; from < end; from += depth) add(x.at(row), x.step(row), rows, from, std::min(from + depth, end), sums);
        for (Int m = 0; m < rows; ++m) {
            Int n = 0;
            for (; n + LANES <= outs; n += LANES) store(y + m * BLOCK + n, totals(sums + m * BLOCK + n));
            for (; n < outs; ++n) y[m * BLOCK + n] = total(sums[m * BLOCK + n]);
        }
        return rows;
    }

  private:
    void add(const Number* x, Int step, Int rows, Int from, Int to, Vec* sums) const {
        const Int inputs = linear.inputs;
        if (!direct) {
            multiply(x, step, rows, Numbers{scratch.weights.data(), linear.stride()}, outs, from, to, sums, BLOCK);
        } else if (linear.halves) {
            multiply(x, step, rows, Halves{linear.halves + out * inputs, inputs}, outs, from, to, sums, BLOCK);
        } else {
#if defined(__AVX512F__)
            const CodeRows rows_of{linear.codes.data + out * inputs / 2, scratch.scales.data(), load(linear.codes.values), size_t(inputs)};
            multiply(x, step, rows, rows_of, outs, from, to, sums, BLOCK);
#endif
        }
    }

    void lay_row(Int n, Number* to) const {
        const Int inputs = linear.inputs, at = (out + n) * inputs;
        if (linear.halves)
            lay(linear.halves + at, to, WIDE, inputs, linear.stride());
        else if (inputs % SCALED)
            lay_codes(at, to);
        else
            lay_code_blocks(at, scratch.scales.data() + n * (inputs / SCALED), to);
    }

    // A row that begins within a block.
    void lay_codes(Int at, Number* to) const {
        std::fill(to + linear.inputs / PAIR * PAIR, to + linear.stride(), Number{});
        for (Int i = 0; i < linear.inputs; ++i) to[place(i)] = number(linear.codes.weight(at + i));
    }

    void lay_code_blocks(Int at, const float* scales, Number* to) const {
        const CodeTable table(linear.codes.values);
        for (Int i = 0; i < linear.inputs; i += SCALED) table.lay(linear.codes.data + (at + i) / 2, scales[i / SCALED], to + i);
    }

    const Linear& linear;
    const Int out, outs;
    Scratch& scratch;
    bool direct;
};

// Rows of activations that are multiplied with one block after the other: so many as stay in the second-level cache.
inline Int rows_at_once(const Linear& linear) {
    const Int fitting = CACHED / (linear.stride() * Int(sizeof(Number))) / GROUP * GROUP;
    return std::max<Int>(4 * GROUP, fitting);
}

// Outputs that each of `threads` takes at a time: small enough that all have something to do until the end.
inline Int block_width(Int outputs, Int threads) {
    const Int even = outputs / (threads * 6) / 16 * 16;
    return std::max<Int>(16, std::min(BLOCK, even));
}
