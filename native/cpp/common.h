// What all kernels share: a vector of floats as wide as this CPU's registers, bf16 as it lies in memory, and sums over
// lanes. Knows nothing of models.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using Int = int64_t;
constexpr Int LINE_BYTES = 64;  // of a cache line
constexpr Int LINE = 32;  // bf16 numbers in it
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

inline Vec load(const float* from) {
    Vec value;
    memcpy(&value, from, sizeof value);
    return value;
}

inline Vec load(const BFloat16* from) {
    HalfVec half;
    memcpy(&half, from, sizeof half);
#if defined(__AVX512F__)  // whose conversions compilers take apart into halves
    const BitVec wide = BitVec(_mm512_slli_epi32(_mm512_cvtepu16_epi32(__m256i(half)), 16));
#else
    const BitVec wide = __builtin_convertvector(half, BitVec) << 16;
#endif
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

// What is too small for a normal number may come out as zero.
inline void store(BFloat16* to, Vec value) {
#if defined(__AVX512BF16__)
    const __m256bh half = _mm512_cvtneps_pbh(__m512(value));
#elif defined(__AVX512F__)
    const HalfVec half = HalfVec(_mm512_cvtepi32_epi16(__m512i(rounded_bits(value) >> 16)));
#else
    const HalfVec half = __builtin_convertvector(rounded_bits(value) >> 16, HalfVec);
#endif
    memcpy(to, &half, sizeof half);
}

#if defined(__AVX512F__)
// In halves, the upper added to the lower, as below.
inline float total(Vec value) { return _mm512_reduce_add_ps(__m512(value)); }
inline float largest(Vec value) { return _mm512_reduce_max_ps(__m512(value)); }
#else
inline float total(Vec value) {
    float lanes[LANES];
    memcpy(lanes, &value, sizeof lanes);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

inline float largest(Vec value) {
    float lanes[LANES];
    memcpy(lanes, &value, sizeof lanes);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] = std::max(lanes[lane], lanes[lane + width]);
    return lanes[0];
}
#endif

// Each lane from one of two vectors' lanes, a's and then b's.
__attribute__((always_inline)) inline Vec shuffled(Vec a, Vec b, IntVec places) {
#if defined(__GNUC__) && !defined(__clang__)
    return __builtin_shuffle(a, b, places);
#elif defined(__AVX512F__)
    return Vec(_mm512_permutex2var_ps(__m512(a), __m512i(places), __m512(b)));
#else
    Vec found;
    for (int lane = 0; lane < LANES; ++lane) found[lane] = places[lane] < LANES ? a[places[lane]] : b[places[lane] - LANES];
    return found;
#endif
}

// a and b, each folded upon itself within groups of 2 * HALF lanes: a's sums in every group's first half, b's behind.
template <int HALF>
__attribute__((always_inline)) inline Vec folded(Vec a, Vec b) {
    IntVec kept, moved;  // a blend, which any port does, and one shuffle
    for (int lane = 0; lane < LANES; ++lane) {
        const bool first = lane % (2 * HALF) < HALF;
        kept[lane] = first ? lane : LANES + lane;
        moved[lane] = first ? lane + HALF : LANES + lane - HALF;
    }
    return shuffled(a, b, kept) + shuffled(a, b, moved);
}

template <int HALF>
inline void fold(Vec* values) {
    for (int i = 0; i < HALF; ++i) values[i] = folded<HALF>(values[i], values[i + HALF]);
    if constexpr (HALF > 1) fold<HALF / 2>(values);
}

// The totals of LANES vectors, each added up in the order of `total`.
__attribute__((always_inline)) inline Vec totals(const Vec* values) {
    Vec work[LANES];
    for (int i = 0; i < LANES; ++i) work[i] = values[i];
    fold<LANES / 2>(work);
    return work[0];
}

// 2^x for x <= 0, to about 2 units in the last place; 0 below the normal numbers.
inline Vec exp2_of(Vec x) {
    constexpr float LEAST = -126.0f;
#if defined(__AVX512F__)
    const Vec whole = Vec(_mm512_roundscale_ps(__m512(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    const Vec low = x < LEAST ? Vec{} + LEAST : x, magic = Vec{} + 12582912.0f;
    const Vec whole = (low + magic) - magic;
    x = low;
#endif
    const Vec r = x - whole;  // 2^r as a polynomial that is 1 at 0
    Vec p = r * 1.3264727e-3f + 9.6715130e-3f;
    p = p * r + 5.5507336e-2f;
    p = p * r + 2.4022242e-1f;
    p = p * r + 6.9314700e-1f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    const __mmask16 normal = _mm512_cmp_ps_mask(__m512(x), _mm512_set1_ps(LEAST), _CMP_NLT_UQ);
    return Vec(_mm512_maskz_scalef_ps(normal, __m512(p), __m512(whole)));
#else
    const IntVec bits = (__builtin_convertvector(whole, IntVec) + 127) << 23;
    Vec power;
    memcpy(&power, &bits, sizeof power);
    return low <= LEAST ? Vec{} : p * power;
#endif
}

constexpr float LOG2_E = 1.44269504f;

// e^x for x <= 0, exact enough for bf16.
inline Vec exp_of(Vec x) { return exp2_of(x * LOG2_E); }

// 1 / x, to a unit in the last place, for x in [1, 2].
inline Vec reciprocal(Vec x) {
#if defined(__AVX512F__)  // a division takes as long as ten multiplications
    const Vec about = Vec(_mm512_rcp14_ps(__m512(x)));
    return about * (2.0f - x * about);
#else
    return 1.0f / x;
#endif
}

// Asks for the cache line at an address that will be read soon. It comes to the second-level cache: the nearest one
// waits for so few lines at a time that memory is read at half its speed. Always inline: GCC leaves out calls of a
// function that does nothing but ask.
__attribute__((always_inline)) inline void fetch(const void* at) { __builtin_prefetch(at, 0, 2); }

// What is read very soon, from the second-level cache into the nearest.
__attribute__((always_inline)) inline void fetch_near(const void* at) { __builtin_prefetch(at, 0, 3); }

inline Int padded(Int count, Int to) { return (count + to - 1) / to * to; }

// Room for numbers that begins at a cache line, so that no vector lies in two. What was in it is lost when it grows.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(room); }

    void fit(Int count) {
        if (count <= size) return;
        std::free(room);
        size = padded(count, ALIGNED);
        room = static_cast<T*>(std::aligned_alloc(ALIGNED, size * sizeof(T)));
        if (!room) std::abort();
    }

    T* data() const { return room; }
    T& operator[](Int i) const { return room[i]; }

  private:
    static constexpr Int ALIGNED = 64;  // bytes

    T* room = nullptr;
    Int size = 0;
};
