// y = g * (x W^T + plus) + bias for a whole batch. Sums are floats, rounded once.
#include "task_sharing.h"
#include "pointwise.h"
#include "product.h"

namespace {

// What is applied to sums before they are rounded. Each may be null; `gains` has one pointer per row, null for none.
struct Epilogue {
    const BFloat16* bias;
    const float* plus;
    const float* const* gains;
    Int outputs;

    // `count` of a row's outputs from `out`.
    void write(float* sums, Int row, Int out, Int count, BFloat16* y) const {
        const auto change = [&](auto how) {
            for (Int n = 0; n < count; ++n) sums[n] = how(sums[n], n);
        };
        const Int at = row * outputs + out;
        if (plus) change([&](float sum, Int n) { return sum + plus[at + n]; });
        if (gains && gains[row]) change([&](float sum, Int n) { return sum * gains[row][out + n]; });
        if (bias) change([&](float sum, Int n) { return sum + float(bias[out + n]); });
        round_row(sums, y + at, count);
    }
};

}  // namespace

extern "C" void product_bf16(const BFloat16* x, const Linear* linear, const float* plus, const float* const* gains,
                             BFloat16* y, Int rows) {
    if (!rows) return;  // nobody asked for logits
    static thread_local Inputs kept;
    const Int inputs = linear->inputs, outputs = linear->outputs;
    kept.fit(rows, linear->stride(), !linear->beside_codes(), linear->beside_codes());
    const Inputs& wide = kept;  // the caller's, for the whole team
    const Epilogue epilogue{linear->bias, plus, gains, outputs};
    const Int width = block_width(*linear, outputs, rows, omp_get_max_threads());
    const Int blocks = (outputs + width - 1) / width;
    const Parts parts(*linear, rows);
    static thread_local TaskSharing kept_sharing;
    TaskSharing& sharing = kept_sharing;
    sharing.set(parts.count() * blocks);
#pragma omp parallel
    {
        static thread_local Scratch scratch;
        const TileUse tiles(rows);
        wide.put(x, inputs);
        sharing.run([&](Int task, Int following) {
            const Int out = task % blocks * width, outs = std::min(width, outputs - out);
            const Range range = parts[task / blocks];
            const NextRows next = following == TaskSharing::NONE ? NextRows{} : NextRows{linear, following % blocks * width};
            Block block(*linear, out, outs, range, next, scratch);
            block.multiply_all(wide);
            for (Int row = range.first; row < range.stop; row += ROWS_AT_ONCE) {
                float sums[ROWS_AT_ONCE * BLOCK];
                const Int count = block.products(wide, row, sums);
                for (Int m = 0; m < count; ++m) epilogue.write(sums + m * BLOCK, row + m, out, outs, y);
            }
        });
    }
}
