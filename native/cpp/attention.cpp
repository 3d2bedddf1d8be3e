// Attention of a whole batch by itself.
#include <omp.h>

#include "attention.h"

// Writes the tokens' keys and values, then computes every token's output [tokens, heads, width].
extern "C" void attend_bf16(const Batch* batch, const Rows* query, const Rows* key, const Rows* value, const Cache* cache,
                            BFloat16* out) {
    std::vector<AttentionTask> tasks;
    append_tasks(*batch, *cache, omp_get_max_threads(), tasks);
#pragma omp parallel
    {
        static thread_local AttentionScratch scratch;
#pragma omp for
        for (Int token = 0; token < batch->tokens; ++token) write_slot(*batch, token, *key, *value, *cache);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < tasks.size(); ++i) attend(tasks[i], *batch, *query, *cache, scratch, out);
    }
}
