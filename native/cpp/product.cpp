// y = x W^T + bias for a weight in bf16, or in bitsandbytes' 4 bits. Weights are widened to float a block at a time,
// in the first-level cache, and sums are floats, rounded once.
#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr Int BLOCK = 12;                 // weight rows that are widened together
constexpr Int DEPTH = 1024;               // and so many of their inputs
constexpr Int ROW_BYTES = 320 * 1024;     // activations that are multiplied before weights are read again

struct Bf16Weight {
    const BFloat16* data;
    Int inputs;

    void widen_row(Int row, Int from, Int count, float* to) const { widen(data + row * inputs + from, to, count); }
};

// 4-bit codes, two in a byte, high half first, in blocks of 64 with a scale each; the scales are 8-bit codes in
// blocks of 256 with a float scale each, plus an offset (double quantization, arXiv 2305.14314).
struct FourBitWeight {
    const uint8_t* codes;
    const float* values;  // what the 16 codes stand for
    const uint8_t* scale_codes;
    const float* scale_values;
    const float* scale_scales;
    float offset;
    Int inputs;

    static constexpr Int SCALED = 64, NESTED = 256;

    float scale(Int block) const { return scale_values[scale_codes[block]] * scale_scales[block / NESTED] + offset; }

    void widen_row(Int row, Int from, Int count, float* to) const {
        Int at = row * inputs + from;
        for (Int done = 0; done < count;) {
            Int part = std::min(count - done, SCALED - (at + done) % SCALED);
            widen_block(at + done, part, scale((at + done) / SCALED), to + done);
            done += part;
        }
        for (Int i = count; i % LANES; ++i) to[i] = 0;
    }

    void widen_block(Int at, Int count, float by, float* to) const {
        Int i = 0;
        if (at % 2 == 0)
            for (; i + AT_ONCE <= count; i += AT_ONCE) look_up(codes + (at + i) / 2, by, to + i);
        for (; i < count; ++i) {
            uint8_t both = codes[(at + i) / 2];
            to[i] = values[(at + i) % 2 ? both & 15 : both >> 4] * by;
        }
    }

#if defined(__AVX512F__)
    static constexpr Int AT_ONCE = LANES;

    // Every lane gets the word its code is in, shifts it down, and picks the value from a register.
    void look_up(const uint8_t* from, float by, float* to) const {
        uint32_t word[2];
        memcpy(word, from, sizeof word);
        BitVec lane;
        for (int i = 0; i < LANES; ++i) lane[i] = i;
        BitVec code = (lane < 8 ? BitVec{} + word[0] : BitVec{} + word[1]) >> 4 * (lane % 8 ^ 1);
        store(to, __builtin_shuffle(load(values), IntVec(code & 15)) * by);
    }
#elif defined(__AVX2__)
    static constexpr Int AT_ONCE = 32;

    // Byte shuffles are the one fast table here: they fetch each half of the values, as bf16, for 16 codes at a time.
    void look_up(const uint8_t* from, float by, float* to) const {
        const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), low = _mm_set1_epi8(15);
        const __m128i even = _mm_and_si128(_mm_srli_epi16(both, 4), low), odd = _mm_and_si128(both, low);
        const __m128i even_0 = _mm_shuffle_epi8(halves[0], even), even_1 = _mm_shuffle_epi8(halves[1], even);
        const __m128i odd_0 = _mm_shuffle_epi8(halves[0], odd), odd_1 = _mm_shuffle_epi8(halves[1], odd);
        put(_mm_unpacklo_epi8(even_0, even_1), _mm_unpacklo_epi8(odd_0, odd_1), by, to);
        put(_mm_unpackhi_epi8(even_0, even_1), _mm_unpackhi_epi8(odd_0, odd_1), by, to + 16);
    }

    static void put(__m128i even, __m128i odd, float by, float* to) {
        const __m128i first = _mm_unpacklo_epi16(even, odd), last = _mm_unpackhi_epi16(even, odd);
        const __m256 scale = _mm256_set1_ps(by);
        for (const __m128i eight : {first, last}) {
            const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16);
            _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_castsi256_ps(wide), scale));
            to += 8;
        }
    }

    __m128i halves[2] = {};  // the lower and the upper bytes of `values` in bf16
#else
    static constexpr Int AT_ONCE = 2;

    void look_up(const uint8_t* from, float by, float* to) const {
        to[0] = values[*from >> 4] * by, to[1] = values[*from & 15] * by;
    }
#endif

    void prepare() {
#if defined(__AVX2__) && !defined(__AVX512F__)
        uint8_t bytes[2][16];
        for (int code = 0; code < 16; ++code) {
            const uint16_t bits = BFloat16::of(values[code]).bits;
            bytes[0][code] = uint8_t(bits), bytes[1][code] = uint8_t(bits >> 8);
        }
        memcpy(halves, bytes, sizeof halves);
#endif
    }
};

template <class Weight>
void product(const BFloat16* x, const Weight& weight, const BFloat16* bias, BFloat16* y, Int rows, Int outputs) {
    static thread_local std::vector<float> kept;
    const Int inputs = weight.inputs, stride = padded(inputs);
    kept.resize(rows * stride);
    float* wide = kept.data();
    const Int rows_at_once = std::min(rows, std::max<Int>(ROWS * 4, ROW_BYTES / (stride * 4) / ROWS * ROWS));
    const Int blocks = (outputs + BLOCK - 1) / BLOCK;
#pragma omp parallel
    {
        static thread_local std::vector<Vec> kept_sums;
        static thread_local std::vector<float> kept_block;
        kept_sums.resize(rows_at_once * BLOCK);
        kept_block.resize(BLOCK * DEPTH);
        Vec* sums = kept_sums.data();
        float* block = kept_block.data();
#pragma omp for
        for (Int row = 0; row < rows; ++row) widen(x + row * inputs, wide + row * stride, inputs);
        for (Int first = 0; first < rows; first += rows_at_once) {
            const Int count = std::min(rows_at_once, rows - first);
#pragma omp for schedule(dynamic, 4) nowait
            for (Int b = 0; b < blocks; ++b) {
                const Int out = b * BLOCK, outs = std::min(BLOCK, outputs - out);
                std::fill(sums, sums + count * BLOCK, Vec{});
                for (Int k = 0; k < inputs; k += DEPTH) {
                    const Int depth = std::min(DEPTH, inputs - k);
                    const float* xs = wide + first * stride + k;
                    if constexpr (std::is_same_v<Weight, Bf16Weight>)
                        if (count <= ROWS && inputs % LANES == 0) {  // used once: widened on the way to the registers
                            multiply(xs, stride, count, weight.data + out * inputs + k, inputs, outs, depth, sums, BLOCK);
                            continue;
                        }
                    for (Int n = 0; n < outs; ++n) weight.widen_row(out + n, k, depth, block + n * DEPTH);
                    multiply(xs, stride, count, block, DEPTH, outs, padded(depth), sums, BLOCK);
                }
                for (Int m = 0; m < count; ++m)
                    for (Int n = 0; n < outs; ++n) {
                        float value = total(sums[m * BLOCK + n]) + (bias ? float(bias[out + n]) : 0);
                        y[(first + m) * outputs + out + n] = BFloat16::of(value);
                    }
            }
        }
    }
}

}  // namespace

extern "C" void product_bf16(const BFloat16* x, const BFloat16* weight, const BFloat16* bias, BFloat16* y, Int rows,
                             Int outputs, Int inputs) {
    product(x, Bf16Weight{weight, inputs}, bias, y, rows, outputs);
}

extern "C" void product_4bit(const BFloat16* x, const uint8_t* codes, const float* values, const uint8_t* scale_codes,
                             const float* scale_values, const float* scale_scales, float offset, const BFloat16* bias,
                             BFloat16* y, Int rows, Int outputs, Int inputs) {
    FourBitWeight weight{codes, values, scale_codes, scale_values, scale_scales, offset, inputs};
    weight.prepare();
    product(x, weight, bias, y, rows, outputs);
}
