// A square of lanes, turned. Knows nothing of what is in it.
#pragma once

#include "common.h"

#if defined(__GNUC__) && !defined(__clang__)
// Transposes LANES rows.
template <int BIT = LANES / 2>
inline void transpose(Vec* rows) {
    IntVec low, high;
    for (int lane = 0; lane < LANES; ++lane) {
        low[lane] = lane & BIT ? LANES + (lane ^ BIT) : lane;
        high[lane] = lane & BIT ? LANES + lane : lane ^ BIT;
    }
    for (int i = 0; i < LANES; ++i) {
        if (i & BIT) continue;
        const Vec a = rows[i], b = rows[i | BIT];
        rows[i] = __builtin_shuffle(a, b, low), rows[i | BIT] = __builtin_shuffle(a, b, high);
    }
    if constexpr (BIT > 1) transpose<BIT / 2>(rows);
}
#else
inline void transpose(Vec* rows) {
    Vec turned[LANES];
    for (int i = 0; i < LANES; ++i)
        for (int j = 0; j < LANES; ++j) turned[j][i] = rows[i][j];
    std::copy(turned, turned + LANES, rows);
}
#endif
