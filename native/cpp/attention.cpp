// Attention of a whole batch by itself.
#include "attention.h"
#include "task_sharing.h"

// Writes the tokens' keys and values, then computes every token's output [tokens, heads, width].
extern "C" void attend_bf16(const Batch* batch, const Rows* query, const Rows* key, const Rows* value, const Cache* cache,
                            BFloat16* out) {
    std::vector<AttentionTask> tasks;
    append_tasks(*batch, *cache, omp_get_max_threads(), tasks);
    TaskSharing sharing;
    sharing.set(tasks.size());
#pragma omp parallel
    {
        static thread_local AttentionScratch scratch;
#pragma omp for
        for (Int token = 0; token < batch->tokens; ++token) write_slot(*batch, token, *key, *value, *cache);
        sharing.run([&](Int task, Int) { attend(tasks, task, *batch, *query, *cache, scratch, out); });
    }
}
