// y = g * (x W^T + plus) + bias for a weight in bf16, or in bitsandbytes' 4 bits. Weights are widened to float a block
// at a time, in the first-level cache, and sums are floats, rounded once.
#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr Int BLOCK = 12;              // weight rows that a thread takes at a time
constexpr Int DEPTH = 1024;            // inputs whose weights are widened together
constexpr Int DIRECT = 16;             // up to so many rows of activations, bf16 weights are widened in registers
constexpr Int ROW_BYTES = 320 * 1024;  // activations that are multiplied before weights are read again

struct Bf16Weight {
    const BFloat16* data;
    Int inputs;

    static Int place(Int input) { return input; }

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
        const Int at = row * inputs + from;
        if (inputs % SCALED == 0)
            for (Int i = 0; i < count; i += SCALED) widen_block(codes + (at + i) / 2, scale((at + i) / SCALED), to + i);
        else
            widen_slowly(at, count, to);
    }

    // Rows that begin within a block.
    void widen_slowly(Int at, Int count, float* to) const {
        for (Int i = 0; i < count; ++i) {
            const uint8_t both = codes[(at + i) / 2];
            to[i] = values[(at + i) % 2 ? both & 15 : both >> 4] * scale((at + i) / SCALED);
        }
        for (Int i = count; i % LANES; ++i) to[i] = 0;
    }

    // Where an input's weight is put in its block; activations are put there too. Any order will do for a sum.
    Int place(Int input) const { return inputs % SCALED ? input : input / SCALED * SCALED + place_in_block(input % SCALED); }

#if defined(__AVX512F__)
    static Int place_in_block(Int input) { return input; }

    // Every lane gets the word its code is in, shifts it down, and picks the value from a register.
    void widen_block(const uint8_t* from, float by, float* to) const {
        BitVec lane;
        for (int i = 0; i < LANES; ++i) lane[i] = i;
        for (Int i = 0; i < SCALED; i += LANES) {
            uint32_t word[2];
            memcpy(word, from + i / 2, sizeof word);
            BitVec code = (lane < 8 ? BitVec{} + word[0] : BitVec{} + word[1]) >> 4 * (lane % 8 ^ 1);
            store(to + i, __builtin_shuffle(load(values), IntVec(code & 15)) * by);
        }
    }
#elif defined(__AVX2__)
    // Unpacking works on halves of a register: byte b of 32 goes to lane 4 (b / 16) + b % 4 of vector b / 4 % 4, its
    // high code to the first four vectors and its low code to the others.
    static Int place_in_block(Int input) {
        const Int byte = input / 2;
        return (byte / 4 % 4 + input % 2 * 4) * LANES + byte / 16 * 4 + byte % 4;
    }

    // Byte shuffles are the one fast table here: they fetch each half of the values, as bf16, for 32 codes at a time.
    void widen_block(const uint8_t* from, float by, float* to) const {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), low = _mm256_set1_epi8(15);
        const __m256 scale = _mm256_set1_ps(by);
        for (const __m256i code : {_mm256_and_si256(_mm256_srli_epi16(both, 4), low), _mm256_and_si256(both, low)}) {
            const __m256i lower = _mm256_shuffle_epi8(halves[0], code), upper = _mm256_shuffle_epi8(halves[1], code);
            for (const __m256i sixteen : {_mm256_unpacklo_epi8(lower, upper), _mm256_unpackhi_epi8(lower, upper)}) {
                const __m256i zero = _mm256_setzero_si256();
                const __m256i first = _mm256_unpacklo_epi16(zero, sixteen), last = _mm256_unpackhi_epi16(zero, sixteen);
                _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_castsi256_ps(first), scale));
                _mm256_storeu_ps(to + LANES, _mm256_mul_ps(_mm256_castsi256_ps(last), scale));
                to += 2 * LANES;
            }
        }
    }

    __m256i halves[2] = {};  // the lower and the upper bytes of `values` in bf16, twice
#else
    static Int place_in_block(Int input) { return input; }

    void widen_block(const uint8_t* from, float by, float* to) const {
        for (Int i = 0; i < SCALED; i += 2) to[i] = values[from[i / 2] >> 4] * by, to[i + 1] = values[from[i / 2] & 15] * by;
    }
#endif

    void prepare() {
#if defined(__AVX2__) && !defined(__AVX512F__)
        uint8_t bytes[2][32];
        for (int code = 0; code < 32; ++code) {
            const uint16_t bits = BFloat16::of(values[code % 16]).bits;
            bytes[0][code] = uint8_t(bits), bytes[1][code] = uint8_t(bits >> 8);
        }
        memcpy(halves, bytes, sizeof halves);
#endif
    }
};

// One row of activations as floats, each where the weight's order wants it, and zeros up to the next whole vector.
template <class Weight>
void widen_activations(const BFloat16* x, const Weight& weight, float* to) {
    for (Int i = 0; i < weight.inputs; ++i) to[weight.place(i)] = x[i];
    for (Int i = weight.inputs; i % LANES; ++i) to[i] = 0;
}

// What becomes of a sum before it is rounded. Each may be null; `gains` has an address for each row, null for none.
struct Ending {
    const BFloat16* bias;
    const float* plus;
    const float* const* gains;

    float of(float sum, Int row, Int out, Int outputs) const {
        if (plus) sum += plus[row * outputs + out];
        if (gains && gains[row]) sum *= gains[row][out];
        return bias ? sum + float(bias[out]) : sum;
    }
};

template <class Weight>
void product(const BFloat16* x, const Weight& weight, const Ending& ending, BFloat16* y, Int rows, Int outputs) {
    static thread_local std::vector<float> kept;
    const Int inputs = weight.inputs, stride = padded(inputs);
    kept.resize(rows * stride);
    float* wide = kept.data();
    const Int rows_at_once = std::min(rows, std::max<Int>(DIRECT, ROW_BYTES / (stride * 4) / ROWS * ROWS));
    const Int blocks = (outputs + BLOCK - 1) / BLOCK;
#pragma omp parallel
    {
        static thread_local std::vector<Vec> kept_sums;
        static thread_local std::vector<float> kept_block;
        kept_sums.resize(rows_at_once * BLOCK);
        kept_block.resize(COLUMNS * DEPTH);
        Vec* sums = kept_sums.data();
        float* block = kept_block.data();
#pragma omp for
        for (Int row = 0; row < rows; ++row) widen_activations(x + row * inputs, weight, wide + row * stride);
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
                        if (count <= DIRECT && inputs % LANES == 0) {
                            multiply(xs, stride, count, weight.data + out * inputs + k, inputs, outs, depth, sums, BLOCK);
                            continue;
                        }
                    for (Int n = 0; n < outs; n += COLUMNS) {
                        const Int some = std::min<Int>(COLUMNS, outs - n);
                        for (Int i = 0; i < some; ++i) weight.widen_row(out + n + i, k, depth, block + i * DEPTH);
                        multiply(xs, stride, count, block, DEPTH, some, padded(depth), sums + n, BLOCK);
                    }
                }
                for (Int m = 0; m < count; ++m)
                    for (Int n = 0; n < outs; ++n) {
                        const float value = ending.of(total(sums[m * BLOCK + n]), first + m, out + n, outputs);
                        y[(first + m) * outputs + out + n] = BFloat16::of(value);
                    }
            }
        }
    }
}

}  // namespace

extern "C" void product_bf16(const BFloat16* x, const BFloat16* weight, const BFloat16* bias, const float* plus,
                             const float* const* gains, BFloat16* y, Int rows, Int outputs, Int inputs) {
    product(x, Bf16Weight{weight, inputs}, {bias, plus, gains}, y, rows, outputs);
}

extern "C" void product_4bit(const BFloat16* x, const uint8_t* codes, const float* values, const uint8_t* scale_codes,
                             const float* scale_values, const float* scale_scales, float offset, const BFloat16* bias,
                             const float* plus, const float* const* gains, BFloat16* y, Int rows, Int outputs,
                             Int inputs) {
    FourBitWeight weight{codes, values, scale_codes, scale_values, scale_scales, offset, inputs};
    weight.prepare();
    product(x, weight, {bias, plus, gains}, y, rows, outputs);
}
