// What attention reads and writes, and how the work is divided: each task has some query rows of one sequence, and one key/
// value head or several. Computes nothing.
#pragma once

#include "softmax.h"

// At most so many query rows share a reading of the keys: the query heads of a KV head, times positions. More where keys are
// laid out for it, unless there would not be two tasks for every thread.
constexpr Int LINES = 32, MOST_LINES = 128;

struct Batch {
    Int tokens;
    const Int* slots_T;  // where each token's key and value go
    Int spans;
    const Int* starts;    // first row of each sequence
    const Int* counts;    // its rows
    const Int* contexts;  // its positions, those rows included
    const Int* slots_NL;  // where its context lies
    Int slots_stride;
};

struct Rows {  // [tokens, heads, width] by strides; the width is contiguous
    const BFloat16* data;
    Int token, head;
};

struct Cache {
    BFloat16* keys;  // [slots, kv_heads, width]
    BFloat16* values;
    Int heads, kv_heads, width;
    float scaling;
    Int window;  // how many positions a query sees, itself included; 0 for all

    bool dots() const { return PAIR_VECTORS == 1 && width % PAIR == 0; }  // whether heads are multiplied as bf16
};

struct AttentionTask {
    Int span, head, heads;  // `heads` key/value heads from `head`
    Int first, count;       // `count` of the span's rows from its `first`
};

// Offsets into the cache of a tile's keys, and of the next tile's.
struct KeyOffsets {
    Int now[KEYS], later[KEYS];
};

// The next tile's keys and values, of which memory is asked a few rows at a time: all at once are more than can be on their way.
struct NextTile {
    const BFloat16 *keys, *values;
    const Int* later;
    Int width, row;

    void ask(Int rows) {
        for (const Int stop = std::min(row + rows, 2 * KEYS); row < stop; ++row) {
            const BFloat16* at = (row < KEYS ? keys : values) + later[row % KEYS];
            for (Int d = 0; d < width; d += LINE) fetch(at + d);
        }
    }
};

// The keys that a task reads: from the tile of the oldest position that its first row sees, to its last row's own.
struct KeyRange {
    const Int* slots;
    Int position, first, stop, size, start;

    KeyRange(const AttentionTask& task, const Batch& batch, const Cache& layer) {
        slots = batch.slots_NL + task.span * batch.slots_stride;
        position = batch.contexts[task.span] - batch.counts[task.span] + task.first;
        stop = position + task.count;
        // Tiles begin at multiples of their size, so that a row's sums do not depend on where its chunk began.
        first = layer.window ? std::max<Int>(0, position - layer.window + 1) / KEYS * KEYS : 0;
        size = layer.kv_heads * layer.width, start = task.head * layer.width;
    }

    // Where the keys of the tile at `from` lie; behind the last one, that again.
    void find(Int from, Int* at) const {
        for (Int j = 0; j < KEYS; ++j) at[j] = slots[std::min(from + j, stop - 1)] * size + start;
    }
};

// One task for each sequence and so many of its rows as share a reading of the keys. A single row takes several heads,
// whose keys lie side by side in memory, as long as every thread has something to do.
inline void append_tasks(const Batch& batch, const Cache& cache, Int threads, std::vector<AttentionTask>& tasks) {
    const Int groups = cache.heads / cache.kv_heads;
    Int lines = cache.dots() ? MOST_LINES : LINES, rows = 0;
    for (Int span = 0; span < batch.spans; ++span) rows += batch.counts[span];
    while (lines > LINES && rows * cache.heads < 2 * threads * lines) lines /= 2;
    const Int positions = std::max<Int>(1, lines / groups);
    for (Int span = 0; span < batch.spans; ++span)
        for (Int first = 0; first < batch.counts[span]; first += positions) {
            const Int count = std::min(positions, batch.counts[span] - first);
            const Int heads = count == 1 && batch.spans >= 2 * threads ? cache.kv_heads : 1;
            for (Int head = 0; head < cache.kv_heads; head += heads) tasks.push_back({span, head, heads, first, count});
        }
}

// Writes a token's keys and values to its slot.
inline void write_slot(const Batch& batch, Int token, const Rows& key, const Rows& value, const Cache& cache) {
    for (Int head = 0; head < cache.kv_heads; ++head) {
        const Int at = (batch.slots_T[token] * cache.kv_heads + head) * cache.width;
        memcpy(cache.keys + at, key.data + token * key.token + head * key.head, size_t(cache.width) * 2);
        memcpy(cache.values + at, value.data + token * value.token + head * value.head, size_t(cache.width) * 2);
    }
}
