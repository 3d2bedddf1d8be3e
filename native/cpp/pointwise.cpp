// What a decoder does row by row, rounded where transformers' own modules round. Rows are few: one thread.
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
