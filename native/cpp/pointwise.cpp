// What a decoder does row by row, rounded where transformers' own modules round. Few rows: one thread.
#include "common.h"

// y = w * bf16(x / sqrt(mean(x^2) + epsilon))
extern "C" void rms_norm_bf16(const BFloat16* x, const BFloat16* w, BFloat16* y, Int rows, Int width, float epsilon) {
#pragma omp parallel for if (rows > 16)
    for (Int row = 0; row < rows; ++row) {
        const BFloat16* from = x + row * width;
        BFloat16* to = y + row * width;
        Vec squares{};
        Int i = 0;
        for (; i + LANES <= width; i += LANES) {
            const Vec value = load(from + i);
            squares += value * value;
        }
        float sum = total(squares);
        for (; i < width; ++i) sum += float(from[i]) * float(from[i]);
        const float by = 1.0f / std::sqrt(sum / float(width) + epsilon);
        for (i = 0; i < width; ++i) to[i] = BFloat16::of(float(w[i]) * float(BFloat16::of(from[i] * by)));
    }
}

namespace {

float rounded(float x) { return BFloat16::of(x); }

float silu(float x) { return x / (1.0f + std::exp(-x)); }

Vec silu(Vec x) {
    const Vec small = exp_of(x < 0 ? x : -x);  // e^-|x| never overflows
    return x * (x < 0 ? small : Vec{} + 1.0f) / (1.0f + small);
}

}  // namespace

// y = bf16(gate * sigmoid(gate)) * up (SwiGLU, arXiv 2002.05202); y may be gate.
extern "C" void silu_product_bf16(const BFloat16* gate, const BFloat16* up, BFloat16* y, Int count) {
    const Int whole = count / LANES * LANES;
#pragma omp parallel for if (count > 16384)
    for (Int i = 0; i < whole; i += LANES) store(y + i, rounded(silu(load(gate + i))) * load(up + i));
    for (Int i = whole; i < count; ++i) y[i] = BFloat16::of(rounded(silu(float(gate[i]))) * float(up[i]));
}

// x[t, h] = x[t, h] * cos[t] + turned(x[t, h]) * sin[t] in place, where turned((a, b)) = (-b, a) for the two halves of a
// head (RoPE, arXiv 2104.09864, in the halves' order of GPT-NeoX). x [tokens, heads, width], cos and sin [tokens, width].
extern "C" void rotate_bf16(BFloat16* x, const BFloat16* cos, const BFloat16* sin, Int tokens, Int heads, Int width) {
    const Int half = width / 2;
#pragma omp parallel for if (tokens > 16)
    for (Int t = 0; t < tokens; ++t) {
        const BFloat16 *c = cos + t * width, *s = sin + t * width;
        for (Int h = 0; h < heads; ++h) {
            BFloat16* head = x + (t * heads + h) * width;
            Int i = 0;
            for (; i + LANES <= half; i += LANES) {
                const Vec a = load(head + i), b = load(head + half + i);
                store(head + i, rounded(a * load(c + i)) - rounded(b * load(s + i)));
                store(head + half + i, rounded(b * load(c + half + i)) + rounded(a * load(s + half + i)));
            }
            for (; i < half; ++i) {
                const float a = head[i], b = head[half + i];
                head[i] = BFloat16::of(rounded(a * c[i]) - rounded(b * s[i]));
                head[half + i] = BFloat16::of(rounded(b * c[half + i]) + rounded(a * s[half + i]));
            }
        }
    }
}
