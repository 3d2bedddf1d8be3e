// Attention over a paged cache: softmax(q k^T * scaling) v over the positions a query may see, a tile of keys at a time
// (FlashAttention's running maximum and sum, arXiv 2205.14135). Only slots of the query's own context are read.
#include "common.h"

namespace {

constexpr Int KEYS = 48;   // keys widened together
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

// e^x for x <= 0, to about 2 units in the last place; what underflows, -inf included, is 0.
inline Vec exp_of(Vec x) {
    const Vec low = x < -87.0f ? Vec{} - 87.0f : x;
    const Vec magic = Vec{} + 12582912.0f;
    const Vec whole = (low * 1.44269504f + magic) - magic;
    const Vec r = low - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    IntVec bits = (__builtin_convertvector(whole, IntVec) + 127) << 23;
    Vec power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? Vec{} : p * power;
}

// What one thread needs for a task; kept between calls.
struct Scratch {
    std::vector<float> q, k, v, p, out;
    std::vector<Vec> sums;

    void fit(Int width) {
        q.resize(LINES * width), k.resize(KEYS * width), v.resize(KEYS * width), out.resize(LINES * width);
        p.resize(LINES * KEYS), sums.resize(LINES * KEYS);
    }
};

template <int M>
inline void add_values(const float* p, const float* v, Int keys, Int width, float* out) {
    for (Int d = 0; d < width; d += LANES) {
        Vec acc[M];
        for (int m = 0; m < M; ++m) acc[m] = load(out + m * width + d);
        for (Int j = 0; j < keys; ++j) {
            const Vec value = load(v + j * width + d);
            for (int m = 0; m < M; ++m) acc[m] += p[m * KEYS + j] * value;
        }
        for (int m = 0; m < M; ++m) store(out + m * width + d, acc[m]);
    }
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
    for (; line + ROWS <= lines; line += ROWS)
        add_values<ROWS>(s.p.data() + line * KEYS, s.v.data(), keys, width, s.out.data() + line * width);
    for (; line < lines; ++line)
        add_values<1>(s.p.data() + line * KEYS, s.v.data(), keys, width, s.out.data() + line * width);
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
