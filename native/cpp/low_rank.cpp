// The low-rank terms of a whole batch by themselves, as floats; rows that no adapter covers are left alone.
#include "linear.h"
#include "low_rank.h"

extern "C" void low_rank_bf16(const BFloat16* x, float* y, const Term* data, Int count, Int layer, Int rows, Int inputs,
                              Int outputs) {
    const Terms terms{data, count};
    const Int widest = terms.widest(layer), stride = padded(inputs, PAIR);
    if (!widest || !rows) return;
    static thread_local Inputs kept_x;
    static thread_local Buffer<float> kept_h;
    kept_x.fit(rows, stride, true, false), kept_h.fit(rows * widest);
    const Inputs& wide = kept_x;  // the caller's, for the whole team
    float* h = kept_h.data();
    std::vector<Shrink> shrinks;
    LayerTerms{layer, inputs, outputs, h, widest, nullptr, false, nullptr}.append(terms, wide.plain(), shrinks);
    const Int outs = LANES * 16, blocks = (outputs + outs - 1) / outs;
#pragma omp parallel
    {
        static thread_local Buffer<Number> block;
        const TileUse tiles(rows);
        wide.put(x, inputs);
#pragma omp for schedule(dynamic)
        for (const Shrink& shrink : shrinks) {
            Shrink::Ahead ahead(&shrink, &shrink + 1);
            shrink.run(block, ahead);
        }
#pragma omp for schedule(dynamic)
        for (Int task = 0; task < blocks * count; ++task) {
            const Term& term = data[task / blocks];
            const Int out = task % blocks * outs, some = std::min(outs, outputs - out);
            const Part& part = term.parts[layer];
            if (part.rank)
                expand(h + term.start * widest, widest, term.stop - term.start, part, outputs, out, some,
                       y + term.start * outputs + out, outputs);
        }
    }
}
