// The form in which activations and weights are multiplied, and that multiplication. Two forms: floats, or bf16 as it
// is where BF16_DOTS says that this processor multiplies it at full speed. Knows nothing of models.
#pragma once

#include "common.h"

#if defined(BF16_DOTS)
// A vector holds twice as many numbers as a sum has lanes. Each lane adds two products; the sums are floats.
using Number = BFloat16;
using Operand = __m512i;

inline Operand operand(const BFloat16* from) { return _mm512_loadu_si512(from); }

inline Vec add_product(Vec sum, Operand a, Operand b) {
    return Vec(_mm512_dpbf16_ps(__m512(sum), __m512bh(a), __m512bh(b)));
}

// Where the i-th number of a row lies.
inline Int place(Int i) { return i; }
inline Number number(float value) { return BFloat16::of(value); }
#else
// Numbers lie in pairs of vectors: those with even numbers, then those with odd ones. So bf16, two of which are in a
// word, needs no shuffling to become float. Any order will do for a sum.
using Number = float;
using Operand = Vec;

inline Int place(Int i) { return i / (2 * LANES) * (2 * LANES) + i % 2 * LANES + i % (2 * LANES) / 2; }
inline Number number(float value) { return value; }
#endif

constexpr Int PAIR = 2 * LANES;  // numbers of a row that are laid together
constexpr Int PER_VECTOR = sizeof(Vec) / sizeof(Number);  // numbers in a vector
constexpr int PAIR_VECTORS = PAIR / PER_VECTOR;  // vectors they make

inline Vec operand(const float* from) { return load(from); }
inline Vec add_product(Vec sum, Vec a, Vec b) { return sum + a * b; }

// Keeps a value in a register, so that the compiler does not read it from memory again for every multiplication.
template <class Value>
inline Value in_register(Value value) {
#if defined(__AVX__)
    asm("" : "+v"(value));
#endif
    return value;
}

#if defined(BF16_DOTS)
// Two numbers of each lane, rounded to bf16: the first in the lower half of a word.
inline Vec rounded_pairs(Vec first, Vec second) {
    alignas(sizeof(Operand)) static constexpr uint16_t PLACES[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = __m512i(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)));
    return Vec(_mm512_permutexvar_epi16(_mm512_load_si512(PLACES), both));
}
#endif

// PAIR numbers of bf16, unpacked to operands.
struct PackedPair {
    Operand vectors[PAIR_VECTORS];

    PackedPair() = default;
    explicit PackedPair(const BFloat16* from) {
#if defined(BF16_DOTS)
        vectors[0] = operand(from);
#else
        BitVec words;
        memcpy(&words, from, sizeof words);
        const BitVec even = words << 16, odd = words & 0xFFFF0000u;
        memcpy(&vectors[0], &even, sizeof even), memcpy(&vectors[1], &odd, sizeof odd);
#endif
    }
};

// Where the vectors of a row go: each whole, `step` numbers behind the last.
struct Strided {
    static Number* put(Operand vector, Number* to, Int step) {
        memcpy(to, &vector, sizeof vector);
        return to + step;
    }
};

// Writes `count` numbers in the form in which they are multiplied, and zeros up to `stride`.
template <class How = Strided>
inline void pack(const BFloat16* from, Number* to, Int step, Int count, Int stride) {
    const auto put = [&](const BFloat16* some) {
        const PackedPair laid(some);
        for (int v = 0; v < PAIR_VECTORS; ++v) to = How::put(laid.vectors[v], to, step);
    };
    Int i = 0;
    for (; i + PAIR <= count; i += PAIR) put(from + i);
    for (; i < stride; i += PAIR) {
        BFloat16 rest[PAIR] = {};
        if (i < count) std::copy(from + i, from + count, rest);
        put(rest);
    }
}
