// Attention over a paged cache: softmax(q k^T * scaling) v over the positions a query may see, a tile of keys at a time
// (FlashAttention's running maximum and sum, arXiv 2205.14135). Only slots of the query's own context are read.
#pragma once

#include "activations.h"

#if defined(BF16_TILES)
constexpr Int KEYS = 2 * TILE_DEPTH;  // keys taken together
#else
constexpr Int KEYS = 48;
#endif
constexpr Int MAX_LINES = 32;  // at most so many query rows share a tile: the query heads of a KV head, times positions
constexpr Int FEW = 8;  // up to so many, values are widened in registers

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
    Buffer<float> q, v, p, out, maxima, weights;
    Buffer<Vec> sums;
    Buffer<BFloat16> keys, rounded_weights;  // a tile's keys that do not lie together; p, rounded

    // `room` is for so many lines of each head.
    void fit(Int lines, Int room, Int heads, Int width) {
        q.fit(heads * lines * width + PAST), out.fit(heads * room * width);
        v.fit(KEYS * width), p.fit(room * KEYS), sums.fit(lines * KEYS);
        maxima.fit(heads * lines), weights.fit(heads * lines);
        keys.fit(KEYS * width), rounded_weights.fit(room * KEYS);
    }
};

// Offsets into the cache of a tile's keys, and of the next tile's.
struct KeyOffsets {
    Int now[KEYS], later[KEYS];
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

// One head's keys or values of a tile as floats, where they lie in the cache. Asks for the next tile's meanwhile.
struct Scattered {
    using X = float;
    static constexpr int ROWS = LANES == 16 ? 8 : 4;
    static constexpr int PER_VECTOR = LANES;
    const BFloat16* data;
    const KeyOffsets& at;

    using Piece = Floats::Piece;
    Piece piece(Int n, Int k) const {
        fetch(data + at.later[n] + k);
        return {load(data + at.now[n] + k)};
    }
};

#if defined(BF16_DOTS)
// Keys as they are.
struct ScatteredHalves {
    using X = Number;
    static constexpr int ROWS = 8;
    static constexpr int PER_VECTOR = ::PER_VECTOR;
    const BFloat16* data;
    const KeyOffsets& at;

    using Piece = Halves::Piece;
    Piece piece(Int n, Int k) const {
        fetch(data + at.later[n] + k);
        return {PackedPair(data + at.now[n] + k)};
    }
};
#endif

// out[m] += p[m] . v over the tile's keys, for M lines and N vectors of the width, from d.
template <int M, int N, class Values>
inline void add_values(const float* p, const Values& v, Int keys, Int width, Int d, float* out) {
    Vec acc[M][N];
    each<M, N>([&](int m, int n) { acc[m][n] = load(out + m * width + d + n * LANES); });
    for (Int j = 0; j < keys; ++j) {
        Vec value[N];
        for (int n = 0; n < N; ++n) value[n] = v.piece(j, d + n * LANES).template vector<0>();
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

// One step of the online softmax: the scores in p become weights; the line's maximum, sum and output are rescaled.
inline void softmax(float scaling, Int seen_from, Int seen_to, Int width, float* p, float& maximum, float& weight, float* out) {
    const Int keys = padded(seen_to, LANES);
    for (Int j = 0; j < keys; j += LANES) store(p + j, load(p + j) * scaling);
    if (seen_from > 0) std::fill(p, p + seen_from, -INFINITY);
    if (seen_to < keys) std::fill(p + seen_to, p + keys, -INFINITY);
    std::fill(p + keys, p + KEYS, 0.0f);
    Vec highest = Vec{} + maximum;
    for (Int j = 0; j < keys; j += LANES) highest = load(p + j) > highest ? load(p + j) : highest;
    const float most = largest(highest);
    Vec sum{};
    for (Int j = 0; j < keys; j += LANES) {
        const Vec e = exp_of(load(p + j) - most);
        store(p + j, e);
        sum += e;
    }
    const float decay = exp_of(Vec{} + (maximum - most))[0];
    maximum = most;
    weight = weight * decay + total(sum);
    for (Int d = 0; d < width; d += LANES) store(out + d, load(out + d) * decay);
}

// One task's work: its lines, query heads times positions, against one tile of keys after the other.
class Attention {
  public:
    Attention(const AttentionTask& task, const Batch& batch, const Rows& query, const Cache& layer, AttentionScratch& s)
        : task(task), layer(layer), range(task, batch, layer), s(s), groups(layer.heads / layer.kv_heads), width(layer.width),
          lines(task.count * groups), room(padded(lines, GROUP)), row(batch.starts[task.span] + task.first) {
        s.fit(lines, room, task.heads, width);
        std::fill(s.maxima.data(), s.maxima.data() + task.heads * lines, -INFINITY);
        std::fill(s.weights.data(), s.weights.data() + task.heads * lines, 0.0f);
        std::fill(s.out.data(), s.out.data() + task.heads * room * width, 0.0f);
        for (Int head = 0; head < task.heads; ++head)
            for (Int line = 0; line < lines; ++line) pack_query(query, head, line);
    }

    // `next` is what this thread does after it, or null.
    void run(const KeyRange* next, BFloat16* out) {
#if defined(BF16_TILES)
        const TileUse tiles = TileUse::of_attention(lines);
#endif
        KeyOffsets at;
        range.find(range.first, at.later);
        for (Int from = range.first; from < range.stop; from += KEYS) {
            std::copy(at.later, at.later + KEYS, at.now);
            if (from + KEYS < range.stop)
                range.find(from + KEYS, at.later);
            else if (next)
                next->find(next->first, at.later);
            for (Int head = 0; head < task.heads; ++head) process_tile(head, at, from);
        }
        for (Int head = 0; head < task.heads; ++head)
            for (Int line = 0; line < lines; ++line) {
                BFloat16* to = out + ((row + line / groups) * layer.heads + query_head(head, line)) * width;
                const float* sums = s.out.data() + (head * room + line) * width;
                for (Int d = 0; d < width; d += LANES) store(to + d, load(sums + d) / s.weights[head * lines + line]);
            }
    }

  private:
    Int query_head(Int head, Int line) const { return (task.head + head) * groups + line % groups; }
    bool dots() const { return PAIR_VECTORS == 1 && width % PAIR == 0; }

    // One head's lines lie as `multiply` reads them.
    void pack_query(const Rows& query, Int head, Int line) {
        const BFloat16* from = query.data + (row + line / groups) * query.token + query_head(head, line) * query.head;
        float* lines_of_head = s.q.data() + head * lines * width;
#if defined(BF16_TILES)
        if (dots()) return queries(head).put(line, from, width);
#endif
        if (dots()) return pack(from, reinterpret_cast<Number*>(lines_of_head) + line * PER_VECTOR, lines * PER_VECTOR, width, width);
        for (Int d = 0; d < width; d += LANES) store(lines_of_head + d * lines + line * LANES, load(from + d));
    }

    // Positions [from, from + KEYS), as far as there are such.
    void process_tile(Int head, const KeyOffsets& at, Int from) {
        const Int keys = std::min(KEYS, range.stop - from);
        const float* q = s.q.data() + head * lines * width;
        const BFloat16 *k = layer.keys + head * width, *v = layer.values + head * width;
#if defined(BF16_TILES)
        if (dots()) return process_in_amx_tiles(head, at, from, keys);
#endif
        for (Int j = keys; j < KEYS; ++j)
            for (Int d = 0; d < width; d += LINE) fetch(k + at.later[j] + d), fetch(v + at.later[j] + d);
#if defined(BF16_DOTS)
        if (dots())
            multiply(reinterpret_cast<const Number*>(q), lines * PER_VECTOR, lines, ScatteredHalves{k, at}, keys, 0, width,
                     s.sums.data(), KEYS);
        else
#endif
            multiply(q, lines * LANES, lines, Scattered{k, at}, keys, 0, width, s.sums.data(), KEYS);
        for (Int line = 0; line < lines; ++line) {
            for (Int j = 0; j < keys; j += LANES) store(s.p.data() + line * KEYS + j, totals(s.sums.data() + line * KEYS + j));
            softmax_line(head, line, from, keys);
        }
        float* out = s.out.data() + head * room * width;
        if (lines <= FEW) return add_all(Scattered{v, at}, keys, out);
        for (Int j = 0; j < keys; ++j)
            for (Int d = 0; d < width; d += LANES) store(s.v.data() + j * width + d, Scattered{v, at}.piece(j, d).value);
        add_all(Floats{s.v.data(), width}, keys, out);
    }

    void softmax_line(Int head, Int line, Int from, Int keys) {
        const Int at = range.position + line / groups, oldest = layer.window ? at - layer.window + 1 : 0;
        const Int seen_from = std::max<Int>(0, oldest - from), seen_to = std::min(keys, at - from + 1);
        float* p = s.p.data() + line * KEYS;
        if (seen_from >= seen_to) return std::fill(p, p + KEYS, 0.0f);
        const Int i = head * lines + line;
        softmax(layer.scaling, seen_from, seen_to, width, p, s.maxima[i], s.weights[i],
              s.out.data() + (head * room + line) * width);
    }

#if defined(BF16_TILES)
    // One head's lines, bf16 in the room that is there for floats.
    Activations queries(Int head) const {
        return {reinterpret_cast<Number*>(s.q.data() + head * lines * width), lines, width};
    }

    // As `process_tile`. Weights are rounded to bf16 before values are multiplied with them, their sum is not.
    void process_in_amx_tiles(Int head, const KeyOffsets& at, Int from, Int keys) {
        const BFloat16 *k = layer.keys + head * width, *v = layer.values + head * width;
        score(head, k, at);
        for (Int line = 0; line < lines; ++line) {
            softmax_line(head, line, from, keys);
            float* p = s.p.data() + line * KEYS;
            for (Int j = 0; j < KEYS; j += LANES) store(s.rounded_weights.data() + line * KEYS + j, load(p + j));
        }
        pair_values(v, at);
        float* out = s.out.data() + head * room * width;
        for (Int line = 0; line < lines; line += TILE_ROWS)
            for (Int d = 0; d < width; d += TILE_ROWS) add_weighted_values(line, d, out + line * width + d);
    }

    // 16 keys where they lie if that is one behind the other, as in a block of the cache; else copied together.
    WeightTiles tile_of_keys(const BFloat16* k, const Int* at, BFloat16* copied) const {
        const Int apart = at[1] - at[0];
        bool even = apart > 0;
        for (Int j = 1; j < TILE_ROWS; ++j) even &= at[j] - at[j - 1] == apart;
        if (even) return {k + at[0], apart * 2, 0, TILE_DEPTH};
        for (Int j = 0; j < TILE_ROWS; ++j) std::copy_n(k + at[j], width, copied + j * width);
        return {copied, width * 2, 0, TILE_DEPTH};
    }

    // p[line][j] = q[line] . k[j] for all keys and lines. Asks for the next tile's keys meanwhile.
    void score(Int head, const BFloat16* k, const KeyOffsets& at) const {
        constexpr int TILES = KEYS / TILE_ROWS;
        WeightTiles keys[TILES];
        for (int t = 0; t < TILES; ++t) {
            keys[t] = tile_of_keys(k, at.now + t * TILE_ROWS, s.keys.data() + t * TILE_ROWS * width);
            for (Int j = 0; j < TILE_ROWS; ++j)
                for (Int d = 0; d < width; d += LINE) fetch(k + at.later[t * TILE_ROWS + j] + d);
        }
        const Activations q = queries(head);
        for (Int line = 0; line < lines; line += GROUP) {
            clear_tiles<TILES>();
            const ActivationTiles x = tiles_of(q, line);
            for (Int d = 0; d < width; d += TILE_DEPTH) {
                load_tile<4>(x.data + d / TILE_DEPTH * x.deeper, x.row_bytes);
                add_scores(keys, d);
            }
            alignas(LINE_BYTES) float found[TILES * TILE_SUMS];
            store_tiles<TILES>(found);
            for (int t = 0; t < TILES; ++t)
                put_sums(found + t * TILE_SUMS, q.group(line), s.p.data() + line * KEYS + t * TILE_ROWS, KEYS);
        }
    }

    template <int T = 0, int N>
    static void add_scores(const WeightTiles (&keys)[N], Int d) {
        load_tile<6>(keys[T].data + d, keys[T].row_bytes);
        multiply_tiles<T, 6, 4>();
        if constexpr (T + 1 < N) add_scores<T + 1>(keys, d);
    }

    // Values of two keys after the other lie in pairs: [pair of keys][width][2].
    void pair_values(const BFloat16* v, const KeyOffsets& at) const {
        alignas(sizeof(Operand)) uint16_t low[PER_VECTOR], high[PER_VECTOR];
        for (int i = 0; i < PER_VECTOR; ++i) low[i] = uint16_t(i / 2 + i % 2 * PER_VECTOR), high[i] = uint16_t(low[i] + PER_VECTOR / 2);
        const __m512i first = _mm512_load_si512(low), second = _mm512_load_si512(high);
        BFloat16* to = reinterpret_cast<BFloat16*>(s.v.data());
        for (Int j = 0; j < KEYS; j += 2)
            for (Int d = 0; d < width; d += PER_VECTOR, to += 2 * PER_VECTOR) {
                fetch(v + at.later[j] + d), fetch(v + at.later[j + 1] + d);
                const Operand a = operand(v + at.now[j] + d), b = operand(v + at.now[j + 1] + d);
                _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, first, b));
                _mm512_storeu_si512(to + PER_VECTOR, _mm512_permutex2var_epi16(a, second, b));
            }
    }

    // out[line][d] += p[line] . v[d] for 16 of each
    void add_weighted_values(Int line, Int d, float* out) const {
        const BFloat16* rounded_weights = s.rounded_weights.data() + line * KEYS;
        const BFloat16* values = reinterpret_cast<BFloat16*>(s.v.data()) + d * 2;
        load_tile<5>(out, width * 4);
        for (Int j = 0; j < KEYS; j += TILE_DEPTH) {
            load_tile<7>(rounded_weights + j, KEYS * 2), load_tile<6>(values + j * width, width * 4);
            multiply_tiles<5, 7, 6>();
        }
        store_tile<5>(out, width * 4);
    }
#endif

    // out += p . v for all lines
    template <class Values>
    void add_all(const Values& v, Int keys, float* out) {
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

    const AttentionTask& task;
    const Cache& layer;
    const KeyRange range;
    AttentionScratch& s;
    const Int groups, width, lines, room, row;
};

// Number `i` of `tasks`.
inline void attend(const std::vector<AttentionTask>& tasks, size_t i, const Batch& batch, const Rows& query, const Cache& layer,
                   AttentionScratch& s, BFloat16* out) {
    Attention attention(tasks[i], batch, query, layer, s);
    if (i + 1 == tasks.size()) return attention.run(nullptr, out);
    const KeyRange next(tasks[i + 1], batch, layer);
    attention.run(&next, out);
}

// One task for each sequence and so many of its rows as share a reading of the keys. A single row takes several heads,
// whose keys lie side by side in memory, as long as every thread has something to do.
inline void append_tasks(const Batch& batch, const Cache& cache, Int threads, std::vector<AttentionTask>& tasks) {
    const Int positions = std::max<Int>(1, MAX_LINES / (cache.heads / cache.kv_heads));
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
