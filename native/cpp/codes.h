// Weights in bitsandbytes' 4 bits: how they lie, their scales, and the order in which activations are laid for them.
// Knows nothing of layers.
#pragma once

#include "activations.h"

constexpr Int CODE_BLOCK = 64;  // codes that share a scale, and
constexpr Int SCALE_BLOCK = 256;  // scales that share one of theirs

// What the 256 codes of scales stand for.
#if defined(BF16_DOTS)
// In four tables of bytes, where 64 codes are looked up at a time; a gather looks up one after the other.
class ScaleTable {
  public:
    void fit(const float* from) {
        if (!memcmp(values, from, sizeof values)) return;  // all layers have the same
        memcpy(values, from, sizeof values);
        for (int code = 0; code < 256; ++code)
            for (int byte = 0; byte < 4; ++byte) bytes[byte][code] = reinterpret_cast<const uint8_t*>(from + code)[byte];
    }

    void find(const uint8_t* codes, Int count, float* to) const {
        if (count < AT_ONCE) return find_each(codes, count, to);
        for (Int i = 0; i < count; i += AT_ONCE) {
            const Int at = std::min(i, count - AT_ONCE);
            find_some(codes + at, to + at);
        }
    }

  private:
    static constexpr Int AT_ONCE = 64;

    void find_each(const uint8_t* codes, Int count, float* to) const {
        for (Int i = 0; i < count; ++i) to[i] = values[codes[i]];
    }

    void find_some(const uint8_t* from, float* to) const {
        // Unpacking works on quarters of a register: codes are put so that 16 in a row end up in one vector.
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m512i codes = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(from));
        __m512i found[4];
        for (int byte = 0; byte < 4; ++byte) found[byte] = find_bytes(codes, bytes[byte]);
        store_words(_mm512_unpacklo_epi8(found[0], found[1]), _mm512_unpacklo_epi8(found[2], found[3]), to);
        store_words(_mm512_unpackhi_epi8(found[0], found[1]), _mm512_unpackhi_epi8(found[2], found[3]), to + 2 * LANES);
    }

    static void store_words(__m512i low, __m512i high, float* to) {
        _mm512_storeu_si512(to, _mm512_unpacklo_epi16(low, high));
        _mm512_storeu_si512(to + LANES, _mm512_unpackhi_epi16(low, high));
    }

    static __m512i find_bytes(__m512i codes, const uint8_t* table) {
        const auto part = [&](int i) { return _mm512_load_si512(table + 64 * i); };
        const __m512i low = _mm512_permutex2var_epi8(part(0), codes, part(1));
        const __m512i high = _mm512_permutex2var_epi8(part(2), codes, part(3));
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
    }

    alignas(64) uint8_t bytes[4][256] = {};
    float values[256] = {};
};
#else
class ScaleTable {
  public:
    void fit(const float* from) { values = from; }

    void find(const uint8_t* codes, Int count, float* to) const {
#pragma GCC unroll 8
        for (Int i = 0; i < count; ++i) to[i] = in_register(values[codes[i]]);  // one by one: a gather is slower
    }

  private:
    const float* values;
};
#endif

// 4-bit codes, two in a byte, high half first; block b's scale is scale_values[scale_codes[b]] * scale_scales[b / 256]
// + offset (double quantization, arXiv 2305.14314).
struct Codes {
    const uint8_t* data;
    const float* values;  // what the 16 codes stand for
    const uint8_t* scale_codes;
    const float* scale_values;
    const float* scale_scales;
    float offset;

    float scale(Int block) const { return scale_values[scale_codes[block]] * scale_scales[block / SCALE_BLOCK] + offset; }

    // The scales of `count` blocks from `block`.
    void scales(Int block, Int count, ScaleTable& table, float* to) const {
        for (Int i = 0; i < count; i += LINE_BYTES) fetch(scale_codes + block + count + i);
        table.fit(scale_values);
        for (Int i = 0, stop; i < count; i = stop) {
            stop = std::min(count, padded(block + i + 1, SCALE_BLOCK) - block);
            table.find(scale_codes + block + i, stop - i, to + i);
            const float by = scale_scales[(block + i) / SCALE_BLOCK];
            for (Int j = i; j < stop; ++j) to[j] = to[j] * by + offset;
        }
    }

    float weight(Int at) const {
        const uint8_t both = data[at / 2];
        return values[at % 2 ? both & 15 : both >> 4] * scale(at / CODE_BLOCK);
    }
};

#if defined(BF16_DOTS)
// Each block's numbers lie in two vectors: those with even numbers, which are the high halves of the codes' bytes, then
// those with odd ones. So a byte's halves need no bringing together.
constexpr bool CODES_IN_OWN_ORDER = true;

inline Int place_beside_codes(Int i) { return i / CODE_BLOCK * CODE_BLOCK + i % 2 * PER_VECTOR + i % CODE_BLOCK / 2; }

// A block's numbers with even places, or with odd ones.
inline Operand beside_codes_of(const BFloat16* block, Int odd) {
    alignas(sizeof(Operand)) uint16_t places[PER_VECTOR];
    for (int i = 0; i < PER_VECTOR; ++i) places[i] = uint16_t(2 * i + odd);
    return _mm512_permutex2var_epi16(operand(block), _mm512_load_si512(places), operand(block + PER_VECTOR));
}

// As `pack`.
inline void pack_beside_codes(const BFloat16* from, Number* to, Int step, Int count, Int stride) {
    const auto put = [&](const BFloat16* some) {
        for (Int odd = 0; odd < 2; ++odd) to = ActivationLayout::put(beside_codes_of(some, odd), to, step);
    };
    Int i = 0;
    for (; i + CODE_BLOCK <= count; i += CODE_BLOCK) put(from + i);
    for (; i < stride; i += CODE_BLOCK) {
        BFloat16 rest[CODE_BLOCK] = {};
        if (i < count) std::copy(from + i, from + count, rest);
        put(rest);
    }
}
#else
constexpr bool CODES_IN_OWN_ORDER = false;
inline Int place_beside_codes(Int i) { return place(i); }
inline void pack_beside_codes(const BFloat16* from, Number* to, Int step, Int count, Int stride) {
    pack<ActivationLayout>(from, to, step, count, stride);
}
#endif
