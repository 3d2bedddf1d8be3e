// Attention over a paged cache: softmax(q k^T * scaling) v over the positions a query may see, a tile of keys at a time
// (FlashAttention's running maximum and sum, arXiv 2205.14135). Only slots of the query's own context are read.
#pragma once

#include "multiply.h"

constexpr Int KEYS = 48;   // keys taken together
constexpr Int AHEAD = 16;  // positions by which slots, which lie anywhere, are asked for before they are read
constexpr Int LINES = 32;  // at most so many query rows share a tile: the query heads of a KV head, times positions
constexpr Int FEW = 4;     // up to so many, keys and values are widened in registers

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
    Int span, head, heads;  // `heads` key/value heads from `head`
    Int first, count;       // `count` of the span's rows from its `first`
};

// What one thread needs for a task; kept between calls.
struct AttentionScratch {
    Buffer<float> q, k, v, p, out, maxima, weights;
    Buffer<Vec> sums;

    void fit(Int lines, Int heads, Int width) {
        q.fit(heads * lines * width), out.fit(heads * lines * width);
        k.fit(KEYS * width), v.fit(KEYS * width), p.fit(lines * KEYS), sums.fit(lines * KEYS);
        maxima.fit(heads * lines), weights.fit(heads * lines);
    }
};

// One head's keys or values of a tile, where they lie in the cache, as a source too.
struct Scattered {
    using X = float;
    static constexpr int ROWS = FEW;
    static constexpr int WIDE = LANES;
    const BFloat16* data;
    const Int* at;  // of each key

    using Some = Floats::Some;
    Some some(Int n, Int k) const { return {load(data + at[n] + k)}; }
};

// out[m] += p[m] . v over the tile's keys, for M lines and N vectors of the width, from d.
template <int M, int N, class Values>
inline void add_values(const float* p, const Values& v, Int keys, Int width, Int d, float* out) {
    Vec acc[M][N];
    each<M, N>([&](int m, int n) { acc[m][n] = load(out + m * width + d + n * LANES); });
    for (Int j = 0; j < keys; ++j) {
        Vec value[N];
        for (int n = 0; n < N; ++n) value[n] = v.some(j, d + n * LANES).template vector<0>();
        each<M, N>([&](int m, int n) { acc[m][n] += p[m * KEYS + j] * value[n]; });
    }
    each<M, N>([&](int m, int n) { store(out + m * width + d + n * LANES, acc[m][n]); });
}

template <int M, class Values>
inline void add_values(const float* p, const Values& v, Int keys, Int width, float* out) {
    Int d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) add_values<M, 4>(p, v, keys, width, d, out);
    for (; d < width; d += LANES) add_values<M, 1>(p, v, keys, width, d, out);
}

// The scores of one line become weights; its maximum, its sum and its output move on.
inline void weigh(const Vec* sums, Int seen_from, Int seen_to, Int width, float* p, float& maximum, float& weight, float* out) {
    for (Int j = 0; j < KEYS; j += LANES) store(p + j, totals(sums + j));
    if (seen_from > 0) std::fill(p, p + seen_from, -INFINITY);
    if (seen_to < KEYS) std::fill(p + seen_to, p + KEYS, -INFINITY);
    Vec highest = Vec{} + maximum;
    for (Int j = 0; j < KEYS; j += LANES) highest = load(p + j) > highest ? load(p + j) : highest;
    const float most = largest(highest);
    Vec sum{};
    for (Int j = 0; j < KEYS; j += LANES) {
        const Vec e = exp_of(load(p + j) - most);
        store(p + j, e);
        sum += e;
    }
    const float faded = exp_of(Vec{} + (maximum - most))[0];
    maximum = most;
    weight = weight * faded + total(sum);
    for (Int d = 0; d < width; d += LANES) store(out + d, load(out + d) * faded);
}

// One head's tile of keys, positions [from, from + keys), for lines whose first is at `position`.
template <class Source>
inline void take_tile(AttentionScratch& s, Int head, Int lines, Int groups, const Source& k, const Source& v, Int keys, Int width,
                      Int from, Int position, Int window) {
    float *q = s.q.data() + head * lines * width, *out = s.out.data() + head * lines * width;
    multiply(q, lines * LANES, lines, k, keys, 0, width, s.sums.data(), KEYS);
    for (Int line = 0; line < lines; ++line) {
        const Int at = position + line / groups, oldest = window ? at - window + 1 : 0;
        const Int seen_from = std::max<Int>(0, oldest - from), seen_to = std::min(keys, at - from + 1);
        float* p = s.p.data() + line * KEYS;
        if (seen_from >= seen_to)
            std::fill(p, p + KEYS, 0.0f);
        else
            weigh(s.sums.data() + line * KEYS, seen_from, seen_to, width, p, s.maxima[head * lines + line],
                  s.weights[head * lines + line], out + line * width);
    }
    Int line = 0;
    const auto add = [&](auto rows) {
        add_values<rows>(s.p.data() + line * KEYS, v, keys, width, out + line * width);
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
    s.fit(lines, task.heads, width);
    std::fill(s.maxima.data(), s.maxima.data() + task.heads * lines, -INFINITY);
    std::fill(s.weights.data(), s.weights.data() + task.heads * lines, 0.0f);
    std::fill(s.out.data(), s.out.data() + task.heads * lines * width, 0.0f);
    // One head's lines lie as `multiply` reads them.
    const auto line_of = [&](Int head, Int line) { return (task.head + head) * groups + line % groups; };
    for (Int head = 0; head < task.heads; ++head)
        for (Int line = 0; line < lines; ++line) {
            const BFloat16* from = query.data + (row + line / groups) * query.token + line_of(head, line) * query.head;
            float* to = s.q.data() + head * lines * width + line * LANES;
            for (Int d = 0; d < width; d += LANES) store(to + d * lines, load(from + d) * layer.scaling);
        }
    const Int stop = position + task.count, size = layer.kv_heads * width, wanted = task.heads * width;
    // Tiles begin at multiples of their size, so that a row's sums do not depend on where its chunk began.
    Int from = layer.window ? std::max<Int>(0, position - layer.window + 1) / KEYS * KEYS : 0;
    for (; from < stop; from += KEYS) {
        const Int keys = std::min(KEYS, stop - from);
        Int at[KEYS];
        for (Int j = 0; j < keys; ++j) at[j] = slots[from + j] * size + task.head * width;
        for (Int head = 0; head < task.heads; ++head) {
            const BFloat16 *k = layer.keys + head * width, *v = layer.values + head * width;
            if (head == 0)
                for (Int j = AHEAD; j < std::min(keys + AHEAD, stop - from); ++j) {
                    const Int later = slots[from + j] * size + task.head * width;
                    for (Int d = 0; d < wanted; d += LINE)
                        fetch(layer.keys + later + d), fetch(layer.values + later + d);
                }
            if (lines <= FEW) {
                take_tile(s, head, lines, groups, Scattered{k, at}, Scattered{v, at}, keys, width, from, position, layer.window);
                continue;
            }
            for (Int j = 0; j < keys; ++j)
                for (Int d = 0; d < width; d += LANES) {
                    store(s.k.data() + j * width + d, load(k + at[j] + d));
                    store(s.v.data() + j * width + d, load(v + at[j] + d));
                }
            take_tile(s, head, lines, groups, Floats{s.k.data(), width}, Floats{s.v.data(), width}, keys, width, from, position,
                      layer.window);
        }
    }
    for (Int head = 0; head < task.heads; ++head)
        for (Int line = 0; line < lines; ++line) {
            BFloat16* to = out + ((row + line / groups) * layer.heads + line_of(head, line)) * width;
            const float* sums = s.out.data() + (head * lines + line) * width;
            for (Int d = 0; d < width; d += LANES) store(to + d, load(sums + d) / s.weights[head * lines + line]);
        }
}

// One task for each sequence and so many of its rows as share a reading of the keys. A single row takes several heads,
// whose keys lie side by side in memory, as long as every thread has something to do.
inline void append_tasks(const Batch& batch, const Cache& cache, Int threads, std::vector<AttentionTask>& tasks) {
    const Int positions = std::max<Int>(1, LINES / (cache.heads / cache.kv_heads));
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
