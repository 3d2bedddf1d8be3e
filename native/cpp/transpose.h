// A square of lanes, turned. Knows nothing of what is in it.
#pragma once

#include "common.h"

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
        rows[i] = shuffled(a, b, low), rows[i | BIT] = shuffled(a, b, high);
    }
    if constexpr (BIT > 1) transpose<BIT / 2>(rows);
}
