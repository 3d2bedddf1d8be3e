// What linears that share an input have together: its rows as products read them, the adapters' terms on them, and the tasks
// that threads share. Knows nothing of what becomes of the products.
#pragma once

#include "linear.h"
#include "low_rank.h"
#include "task_sharing.h"

#if defined(BF16_TILES)
static_assert(DIRECT >= GROUP, "the tiles of a large batch are as wide as a group");
#endif

// The input of up to three linears that share it: all rows' activations, packed, and the adapters' terms on them.
struct LinearInput {
    Inputs x;
    Buffer<float> h[3], plus[3];
    LayerTerms terms[3];
    std::vector<Shrink> shrinks;
    TaskSharing shrink_tasks, product_tasks;

    // Makes room for the input of `linears`, which share it, and lists what adapters shrink. A thread that has an adapter's few
    // rows to itself expands them at once, unless others would have nothing to do.
    void fit(Int rows, const Terms& adapters, std::initializer_list<const Linear*> linears) {
        const bool large = rows > DIRECT;
        const Int at_once = rows_at_once(rows, adapters);
        const auto beside_codes = [](const Linear* linear) { return linear->beside_codes(); };
        const bool some = std::any_of(linears.begin(), linears.end(), beside_codes);
        const bool all = some && std::all_of(linears.begin(), linears.end(), beside_codes);
        x.fit(rows, (*linears.begin())->stride(), adapters.count || !all, some);
        shrinks.clear();
        Int i = 0;
        for (const Linear* linear : linears) {
            const Int h_stride = padded(adapters.widest(linear->number), RANKS), room = padded(rows, GROUP) * h_stride;
            h[i].fit(room + at_once * h_stride);
            if (h_stride) plus[i].fit(at_once * linear->outputs);
            terms[i] = {linear->number, linear->inputs, linear->outputs, h[i].data(), h_stride,
                        at_once && h_stride ? plus[i].data() : nullptr, large, h[i].data() + room};
            terms[i].append(adapters, x.plain(), shrinks);
            ++i;
        }
        shrink_tasks.set(shrinks.size());
    }

  private:
    static Int rows_at_once(Int rows, const Terms& adapters) {
        Int terms = 0, few_rows = 0;
        for (const Term& term : adapters)
            if (rows <= DIRECT || LayerTerms::few(term)) ++terms, few_rows += term.stop - term.start;
        return terms < omp_get_max_threads() ? 0 : rows <= DIRECT ? rows : few_rows;
    }
};
