// Attention over a paged cache: softmax(q k^T * scaling) v over the positions a query may see, a tile of keys at a time
// (FlashAttention's running maximum and sum, arXiv 2205.14135). Only slots of the query's own context are read.
#include "common.h"

namespace {

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

struct Layer {
    BFloat16* keys;  // [slots, kv_heads, width]
    BFloat16* values;
    Int heads, kv_heads, width;
    float scaling;
    Int window;  // how many positions a query sees, itself included; 0 for all
};

struct Task {
    Int span, kv_head, first, count;  // `count` of the span's rows from its `first`
};

// What one thread needs for a task; kept between calls.
struct Scratch {
    std::vector<float> q, k, v, p, out;
    std::vector<Vec> sums;

    void fit(Int width) {
        q.resize(LINES * width), k.resize(KEYS * width), v.resize(KEYS * width), out.resize(LINES * width);
        p.resize(LINES * KEYS), sums.resize(LINES * KEYS);
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
void take_tile(Scratch& s, Int lines, Int groups, Int keys, Int width, Int from, Int first_position, Int window,
               float* maxima, float* totals) {
    std::fill(s.sums.begin(), s.sums.begin() + lines * KEYS, Vec{});
    multiply(s.q.data(), width, lines, s.k.data(), width, keys, width, s.sums.data(), KEYS);
    for (Int line = 0; line < lines; ++line) {
        const Int position = first_position + line / groups;
        const Int seen_from = window && position - window + 1 > from ? position - window + 1 - from : 0;
        const Int seen_to = std::min(keys, position - from + 1);
        float* p = s.p.data() + line * KEYS;
        std::fill(p, p + KEYS, -INFINITY);
        float most = maxima[line];
        for (Int j = seen_from; j < seen_to; ++j) most = std::max(most, p[j] = total(s.sums[line * KEYS + j]));
        if (seen_from >= seen_to) {
            std::fill(p, p + KEYS, 0.0f);
            continue;
        }
        Vec sum{};
        for (Int j = 0; j < KEYS; j += LANES) {
            const Vec e = exp_of(load(p + j) - most);
            store(p + j, e);
            sum += e;
        }
        const float faded = std::exp(maxima[line] - most);
        maxima[line] = most;
        totals[line] = totals[line] * faded + total(sum);
        for (Int d = 0; d < width; ++d) s.out[line * width + d] *= faded;
    }
    Int line = 0;
    const auto add = [&](auto rows) {
        add_values<rows>(s.p.data() + line * KEYS, s.v.data(), keys, width, s.out.data() + line * width);
        line += rows;
    };
    while (line + ROWS <= lines) add(std::integral_constant<int, ROWS>());
    switch (lines - line) {
        case 3: return add(std::integral_constant<int, 3>());
        case 2: return add(std::integral_constant<int, 2>());
        case 1: return add(std::integral_constant<int, 1>());
    }
}

void attend(const Task& task, const Batch& batch, const Rows& query, const Layer& layer, Scratch& s, BFloat16* out) {
    const Int groups = layer.heads / layer.kv_heads, width = layer.width, lines = task.count * groups;
    const Int row = batch.starts[task.span] + task.first;
    const Int position = batch.contexts[task.span] - batch.counts[task.span] + task.first;
    const Int* slots = batch.slots_NL + task.span * batch.slots_stride;
    float maxima[LINES], totals[LINES];
    std::fill(maxima, maxima + lines, -INFINITY), std::fill(totals, totals + lines, 0.0f);
    std::fill(s.out.begin(), s.out.begin() + lines * width, 0.0f);
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
            widen(layer.keys + at, s.k.data() + j * width, width);
            widen(layer.values + at, s.v.data() + j * width, width);
        }
        take_tile(s, lines, groups, keys, width, from, position, layer.window, maxima, totals);
    }
    for (Int line = 0; line < lines; ++line) {
        BFloat16* to = out + ((row + line / groups) * layer.heads + task.kv_head * groups + line % groups) * width;
        for (Int d = 0; d < width; ++d) to[d] = BFloat16::of(s.out[line * width + d] / totals[line]);
    }
}

}  // namespace

// Writes the tokens' keys and values, then computes every token's output [tokens, heads, width].
extern "C" void attend_bf16(const Batch* batch, const Rows* query, const Rows* key, const Rows* value, const Layer* layer,
                            BFloat16* out) {
    const Int groups = layer->heads / layer->kv_heads, width = layer->width;
    const Int positions = std::max<Int>(1, LINES / groups);
    std::vector<Task> tasks;
    for (Int span = 0; span < batch->spans; ++span)
        for (Int first = 0; first < batch->counts[span]; first += positions)
            for (Int head = 0; head < layer->kv_heads; ++head)
                tasks.push_back({span, head, first, std::min(positions, batch->counts[span] - first)});
#pragma omp parallel
    {
        static thread_local Scratch scratch;
        scratch.fit(width);
#pragma omp for
        for (Int t = 0; t < batch->tokens; ++t)
            for (Int head = 0; head < layer->kv_heads; ++head) {
                const Int at = (batch->slots_T[t] * layer->kv_heads + head) * width;
                memcpy(layer->keys + at, key->data + t * key->token + head * key->head, size_t(width) * 2);
                memcpy(layer->values + at, value->data + t * value->token + head * value->head, size_t(width) * 2);
            }
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < tasks.size(); ++i) attend(tasks[i], *batch, *query, *layer, scratch, out);
    }
}
