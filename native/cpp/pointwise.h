// What a decoder does row by row, rounded where transformers' own modules round.
#pragma once

#include "common.h"

// y = w * bf16(x / sqrt(mean(x^2) + epsilon))
inline void rms_norm(const BFloat16* x, const BFloat16* w, BFloat16* y, Int width, float epsilon) {
    Vec squares{};
    Int i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Vec value = load(x + i);
        squares += value * value;
    }
    float sum = total(squares);
    for (; i < width; ++i) sum += float(x[i]) * float(x[i]);
    const float by = 1.0f / std::sqrt(sum / float(width) + epsilon);
    for (i = 0; i + LANES <= width; i += LANES) store(y + i, load(w + i) * rounded(load(x + i) * by));
    for (; i < width; ++i) y[i] = BFloat16::of(float(w[i]) * float(BFloat16::of(x[i] * by)));
}

inline float rounded(float x) { return BFloat16::of(x); }

inline float silu(float x) { return x / (1.0f + std::exp(-x)); }

inline Vec silu(Vec x) {
    const Vec small = exp_of(x < 0 ? x : -x);  // e^-|x| never overflows
    return x * (x < 0 ? small : Vec{} + 1.0f) * reciprocal(1.0f + small);
}

// bf16(gate * sigmoid(gate)) * up, of numbers that are rounded already.
inline Vec silu_product(Vec gate, Vec up) { return rounded(silu(gate)) * up; }

// The same of a row (SwiGLU, arXiv 2002.05202); y may be gate.
inline void silu_product(const BFloat16* gate, const BFloat16* up, BFloat16* y, Int count) {
    Int i = 0;
    for (; i + LANES <= count; i += LANES) store(y + i, silu_product(load(gate + i), load(up + i)));
    for (; i < count; ++i) y[i] = BFloat16::of(rounded(silu(float(gate[i]))) * float(up[i]));
}

// head = head * cos + turned(head) * sin in place, where turned((a, b)) = (-b, a) for its two halves (RoPE,
// arXiv 2104.09864, in the halves' order of GPT-NeoX).
inline void rotate(BFloat16* head, const BFloat16* cos, const BFloat16* sin, Int width) {
    const Int half = width / 2;
    Int i = 0;
    for (; i + LANES <= half; i += LANES) {
        const Vec a = load(head + i), b = load(head + half + i);
        store(head + i, rounded(a * load(cos + i)) - rounded(b * load(sin + i)));
        store(head + half + i, rounded(b * load(cos + half + i)) + rounded(a * load(sin + half + i)));
    }
    for (; i < half; ++i) {
        const float a = head[i], b = head[half + i];
        head[i] = BFloat16::of(rounded(a * cos[i]) - rounded(b * sin[i]));
        head[half + i] = BFloat16::of(rounded(b * cos[half + i]) + rounded(a * sin[half + i]));
    }
}

inline void round_row(const float* from, BFloat16* to, Int count) {
    Int i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
    for (; i < count; ++i) to[i] = BFloat16::of(from[i]);
}
