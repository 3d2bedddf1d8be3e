// The pointwise operations of a whole batch by themselves. Few rows: one thread.
#include "pointwise.h"

extern "C" void rms_norm_bf16(const BFloat16* x, const BFloat16* w, BFloat16* y, Int rows, Int width, float epsilon) {
#pragma omp parallel for if (rows > 16)
    for (Int row = 0; row < rows; ++row) rms_norm(x + row * width, w, y + row * width, width, epsilon);
}

extern "C" void silu_product_bf16(const BFloat16* gate, const BFloat16* up, BFloat16* y, Int count) {
    constexpr Int SOME = 1024;
#pragma omp parallel for if (count > 16384)
    for (Int i = 0; i < count; i += SOME) silu_product(gate + i, up + i, y + i, std::min(SOME, count - i));
}

// x [tokens, heads, width], cos and sin [tokens, width].
extern "C" void rotate_bf16(BFloat16* x, const BFloat16* cos, const BFloat16* sin, Int tokens, Int heads, Int width) {
#pragma omp parallel for if (tokens > 16)
    for (Int token = 0; token < tokens; ++token)
        for (Int head = 0; head < heads; ++head)
            rotate(x + (token * heads + head) * width, cos + token * width, sin + token * width, width);
}
