// Attention over a paged cache: softmax(q k^T * scaling) v over the positions a query may see, a tile of keys at a time
// (FlashAttention's running maximum and sum, arXiv 2205.14135). Only slots of the query's own context are read.
#pragma once

#include "multiply.h"

constexpr Int KEYS = 48;   // keys widened together
constexpr Int AHEAD = 16;  // positions by which slots, which lie anywhere, are asked for before they are read
constexpr Int LINE = 32;   // numbers in a cache line
constexpr Int LINES = 32;  // at most so many query rows share them: the query heads of a KV head, times positions

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
};

struct AttentionTask {
    Int span, kv_head, first, count;  // `count` of the span's rows from its `first`
};

// What one thread needs for a task; kept between calls.
struct AttentionScratch {
    Buffer<float> q, k, v, p, out;
    Buffer<Vec> sums;

    void fit(Int width) {
        q.fit(LINES * width), k.fit(KEYS * width), v.fit(KEYS * width), out.fit(LINES * width);
        p.fit(LINES * KEYS), sums.fit(LINES * KEYS);
    }
};

// out[m] += p[m] . v over the tile's keys, for M lines and N vectors of the width, from d.
template <int M, int N>
inline void add_values(const float* p, const float* v, Int keys, Int width, Int d, float* out) {
    Vec acc[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) acc[m][n] = load(out + m * width + d + n * LANES);
    for (Int j = 0; j < keys; ++j) {
        Vec value[N];
        for (int n = 0; n < N; ++n) value[n] = load(v + j * width + d + n * LANES);
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) acc[m][n] += p[m * KEYS + j] * value[n];
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) store(out + m * width + d + n * LANES, acc[m][n]);
}

template <int M>
inline void add_values(const float* p, const float* v, Int keys, Int width, float* out) {
    Int d = 0;
    for (; d + 2 * LANES <= width; d += 2 * LANES) add_values<M, 2>(p, v, keys, width, d, out);
    if (d < width) add_values<M, 1>(p, v, keys, width, d, out);
}

// One tile of keys, positions [from, from + keys): rows' maxima, sums and outputs move on.
inline void take_tile(AttentionScratch& s, Int lines, Int groups, Int keys, Int width, Int from, Int first_position, Int window,
               float* maxima, float* weights) {
    std::fill(s.sums.data(), s.sums.data() + lines * KEYS, Vec{});
    multiply(s.q.data(), width, lines, Floats{s.k.data(), width}, keys, 0, width, s.sums.data(), KEYS);
    for (Int line = 0; line < lines; ++line) {
        const Int position = first_position + line / groups;
        const Int seen_from = window && position - window + 1 > from ? position - window + 1 - from : 0;
        const Int seen_to = std::min(keys, position - from + 1);
        float* p = s.p.data() + line * KEYS;
        if (seen_from >= seen_to) {
            std::fill(p, p + KEYS, 0.0f);
            continue;
        }
        for (Int j = 0; j < KEYS; j += LANES) store(p + j, totals(s.sums.data() + line * KEYS + j));
        std::fill(p, p + seen_from, -INFINITY), std::fill(p + seen_to, p + KEYS, -INFINITY);
        float most = maxima[line];
        for (Int j = seen_from; j < seen_to; ++j) most = std::max(most, p[j]);
        Vec sum{};
        for (Int j = 0; j < KEYS; j += LANES) {
            const Vec e = exp_of(load(p + j) - most);
            store(p + j, e);
            sum += e;
        }
        const float faded = std::exp(maxima[line] - most);
        maxima[line] = most;
        weights[line] = weights[line] * faded + total(sum);
        for (Int d = 0; d < width; ++d) s.out[line * width + d] *= faded;
    }
    Int line = 0;
    const auto add = [&](auto rows) {
        add_values<rows>(s.p.data() + line * KEYS, s.v.data(), keys, width, s.out.data() + line * width);
        line += rows;
    };
    while (line + 4 <= lines) add(std::integral_constant<int, 4>());
    switch (lines - line) {
        case 3: return add(std::integral_constant<int, 3>());
        case 2: return add(std::integral_constant<int, 2>());
        case 1: return add(std::integral_constant<int, 1>());
    }
}

inline void attend(const AttentionTask& task, const Batch& batch, const Rows& query, const Cache& layer, AttentionScratch& s,
                   BFloat16* out) {
    const Int groups = layer.heads / layer.kv_heads, width = layer.width, lines = task.count * groups;
    const Int row = batch.starts[task.span] + task.first;
    const Int position = batch.contexts[task.span] - batch.counts[task.span] + task.first;
    const Int* slots = batch.slots_NL + task.span * batch.slots_stride;
    float maxima[LINES], weights[LINES];
    std::fill(maxima, maxima + lines, -INFINITY), std::fill(weights, weights + lines, 0.0f);
    std::fill(s.out.data(), s.out.data() + lines * width, 0.0f);
    for (Int line = 0; line < lines; ++line) {
        const BFloat16* from =
            query.data + (row + line / groups) * query.token + (task.kv_head * groups + line % groups) * query.head;
        for (Int d = 0; d < width; ++d) s.q[line * width + d] = from[d] * layer.scaling;
    }
    const Int stop = position + task.count;
    // Tiles begin at multiples of their size, so that a row's sums do not depend on where its chunk began.
    Int from = layer.window ? std::max<Int>(0, position - layer.window + 1) / KEYS * KEYS : 0;
    for (; from < stop; from += KEYS) {
        const Int keys = std::min(KEYS, stop - from);
        for (Int j = 0; j < keys; ++j) {
            if (from + j + AHEAD < stop) {
                const Int later = (slots[from + j + AHEAD] * layer.kv_heads + task.kv_head) * width;
                for (Int d = 0; d < width; d += LINE) {
                    __builtin_prefetch(layer.keys + later + d);
                    __builtin_prefetch(layer.values + later + d);
                }
            }
            const Int at = (slots[from + j] * layer.kv_heads + task.kv_head) * width;
            for (Int d = 0; d < width; d += LANES) {
                store(s.k.data() + j * width + d, load(layer.keys + at + d));
                store(s.v.data() + j * width + d, load(layer.values + at + d));
            }
        }
        take_tile(s, lines, groups, keys, width, from, position, layer.window, maxima, weights);
    }
    for (Int line = 0; line < lines; ++line) {
        BFloat16* to = out + ((row + line / groups) * layer.heads + task.kv_head * groups + line % groups) * width;
        for (Int d = 0; d < width; ++d) to[d] = BFloat16::of(s.out[line * width + d] / weights[line]);
    }
}

// One task for each sequence, key/value head, and so many of its rows as share a reading of the keys.
inline void append_tasks(const Batch& batch, const Cache& cache, std::vector<AttentionTask>& tasks) {
    const Int positions = std::max<Int>(1, LINES / (cache.heads / cache.kv_heads));
    for (Int span = 0; span < batch.spans; ++span)
        for (Int first = 0; first < batch.counts[span]; first += positions)
            for (Int head = 0; head < cache.kv_heads; ++head)
                tasks.push_back({span, head, first, std::min(positions, batch.counts[span] - first)});
}

// Writes a token's keys and values to its slot.
inline void write_slot(const Batch& batch, Int token, const Rows& key, const Rows& value, const Cache& cache) {
    for (Int head = 0; head < cache.kv_heads; ++head) {
        const Int at = (batch.slots_T[token] * cache.kv_heads + head) * cache.width;
        memcpy(cache.keys + at, key.data + token * key.token + head * key.head, size_t(cache.width) * 2);
        memcpy(cache.values + at, value.data + token * value.token + head * value.head, size_t(cache.width) * 2);
    }
}
