// y = g * (x W^T + plus) + bias for a whole batch. Sums are floats, rounded once.
#include "deal.h"
#include "product.h"

namespace {

// What becomes of a sum before it is rounded. Each may be null; `gains` has an address for each row, null for none.
struct Ending {
    const BFloat16* bias;
    const float* plus;
    const float* const* gains;

    float of(float sum, Int row, Int out, Int outputs) const {
        if (plus) sum += plus[row * outputs + out];
        if (gains && gains[row]) sum *= gains[row][out];
        return bias ? sum + float(bias[out]) : sum;
    }
};

}  // namespace

extern "C" void product_bf16(const BFloat16* x, const Linear* linear, const float* plus, const float* const* gains,
                             BFloat16* y, Int rows) {
    static thread_local Inputs kept;
    const Int inputs = linear->inputs, outputs = linear->outputs;
    kept.fit(rows, linear->stride(), !linear->beside_codes(), linear->beside_codes());
    const Inputs& wide = kept;  // the caller's, for the whole team
    const Ending ending{linear->bias, plus, gains};
    const Int width = block_width(outputs, omp_get_max_threads());
    static thread_local Deal kept_deal;
    Deal& deal = kept_deal;
    deal.set((outputs + width - 1) / width);
#pragma omp parallel
    {
        static thread_local Scratch scratch;
#pragma omp for
        for (Int row = 0; row < rows; ++row) wide.put(row, x + row * inputs, inputs);
        deal.run([&](Int task) {
            const Int out = task * width, outs = std::min(width, outputs - out);
            Block block(*linear, out, outs, rows, scratch);
            for (Int row = 0; row < rows; row += GROUP) {
                float sums[GROUP * BLOCK];
                const Int count = block.products(wide, row, sums);
                for (Int m = 0; m < count; ++m)
                    for (Int n = 0; n < outs; ++n) {
                        const float value = ending.of(sums[m * BLOCK + n], row + m, out + n, outputs);
                        y[(row + m) * outputs + out + n] = BFloat16::of(value);
                    }
            }
        });
    }
}
