// Values as dot products read them. Knows nothing of scores.
#pragma once

#include "attention_tasks.h"

#if defined(BF16_DOTS)
// A tile of values at `data`, those of two keys after the other in pairs: [pair of keys][width][2].
struct ValuePairs {
    BFloat16* data;
    Int width;

    // `beside` is called once for each pair of keys.
    template <class Beside>
    void lay(const BFloat16* v, const KeyOffsets& at, Beside beside) const {
        alignas(sizeof(Operand)) uint16_t low[PER_VECTOR], high[PER_VECTOR];
        for (int i = 0; i < PER_VECTOR; ++i) low[i] = uint16_t(i / 2 + i % 2 * PER_VECTOR), high[i] = uint16_t(low[i] + PER_VECTOR / 2);
        const __m512i first = _mm512_load_si512(low), second = _mm512_load_si512(high);
        BFloat16* to = data;
        for (Int j = 0; j < KEYS; j += 2) {
            beside();
            for (Int d = 0; d < width; d += PER_VECTOR, to += 2 * PER_VECTOR) {
                const Operand a = operand(v + at.now[j] + d), b = operand(v + at.now[j + 1] + d);
                _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, first, b));
                _mm512_storeu_si512(to + PER_VECTOR, _mm512_permutex2var_epi16(a, second, b));
            }
        }
    }
};
#endif
