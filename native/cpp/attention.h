// Attention over a paged cache: softmax(q k^T * scaling) v over the positions a query may see, a tile of keys at a time.
// Only slots of the query's own context are read.
#pragma once

#include "dot_attention.h"
#include "tile_attention.h"

constexpr Int FEW = 8;  // up to so many lines, values are widened in registers
constexpr Int ONE_BY_ONE = 8;  // up to so many lines of a group have their softmax each by itself

// What one thread needs for a task; kept between calls. By heads, then lines.
struct AttentionScratch {
    Buffer<float> q, v, p, out, maxima, weights;
    Buffer<Vec> sums;
    Buffer<int32_t> positions;  // of lines
    Buffer<BFloat16> keys, rounded_weights;  // a tile's keys, turned or brought together; p, rounded

    // `room` is for so many lines of each head.
    void fit(Int lines, Int room, Int heads, Int width) {
        q.fit(heads * lines * width + PAST), out.fit(heads * room * width);
        v.fit(KEYS * width), p.fit(room * KEYS), sums.fit(lines * KEYS);
        positions.fit(room), maxima.fit(heads * room), weights.fit(heads * room);
        keys.fit(KEYS * width), rounded_weights.fit(room * KEYS);
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

// `what(count, line)` for all lines, up to four at a time: `count` from `line` on.
template <class Do>
inline void few_at_once(Int lines, Do what) {
    Int line = 0;
    for (; line + 4 <= lines; line += 4) what(std::integral_constant<int, 4>(), line);
    switch (lines - line) {
        case 3: return what(std::integral_constant<int, 3>(), line);
        case 2: return what(std::integral_constant<int, 2>(), line);
        case 1: return what(std::integral_constant<int, 1>(), line);
    }
}

// One task's work: its lines, query heads times positions, against one tile of keys after the other.
class Attention {
  public:
    Attention(const AttentionTask& task, const Batch& batch, const Rows& query, const Cache& layer, AttentionScratch& s)
        : task(task), layer(layer), range(task, batch, layer), s(s), groups(layer.heads / layer.kv_heads), width(layer.width),
          lines(task.count * groups), room(padded(lines, GROUP)), row(batch.starts[task.span] + task.first),
          factor(layer.scaling * LOG2_E) {
        s.fit(lines, room, task.heads, width);
        std::fill(s.maxima.data(), s.maxima.data() + task.heads * room, -INFINITY);
        std::fill(s.weights.data(), s.weights.data() + task.heads * room, 0.0f);
        std::fill(s.out.data(), s.out.data() + task.heads * room * width, 0.0f);
#if defined(BF16_TILES)
        if (whole_groups())
            for (Int line = 0; line < room; ++line) s.positions[line] = int32_t(position(line));
#endif
        for (Int head = 0; head < task.heads; ++head) {
            Int line = 0;
#if defined(BF16_TILES)
            for (; dots() && line + GROUP <= lines; line += GROUP) pack_queries(query, head, line);
#endif
            for (; line < lines; ++line) pack_query(query, head, line);
        }
    }

    // `next` is what this thread does after it, or null.
    void run(const KeyRange* next, BFloat16* out) {
#if defined(BF16_TILES)
        const TileUse tiles = TileUse::of_attention(whole_groups() ? GROUP : lines);
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
                const float by = 1.0f / s.weights[head * room + line];
                for (Int d = 0; d < width; d += LANES) store(to + d, load(sums + d) * by);
            }
    }

  private:
    Int position(Int line) const { return range.position + line / groups; }
    Int query_head(Int head, Int line) const { return (task.head + head) * groups + line % groups; }
    bool dots() const { return layer.dots(); }

    const BFloat16* query_of(const Rows& query, Int head, Int line) const {
        return query.data + (row + line / groups) * query.token + query_head(head, line) * query.head;
    }

    // One head's lines lie as `multiply` reads them.
    void pack_query(const Rows& query, Int head, Int line) {
        const BFloat16* from = query_of(query, head, line);
        float* lines_of_head = s.q.data() + head * lines * width;
#if defined(BF16_TILES)
        if (dots()) return queries(head).put(line, from, width);
#elif defined(BF16_DOTS)
        if (dots()) return void(memcpy(halves(head) + line * width, from, size_t(width) * sizeof(BFloat16)));
#endif
        for (Int d = 0; d < width; d += LANES) store(lines_of_head + d * lines + line * LANES, load(from + d));
    }

    // Positions [from, from + KEYS), as far as there are such.
    void process_tile(Int head, const KeyOffsets& at, Int from) {
        const Int keys = std::min(KEYS, range.stop - from);
        const float* q = s.q.data() + head * lines * width;
        const BFloat16 *k = layer.keys + head * width, *v = layer.values + head * width;
#if defined(BF16_TILES)
        if (dots()) return process_in_amx_tiles(head, at, from, keys);
#elif defined(BF16_DOTS)
        if (dots()) return process_in_dots(head, at, from, keys);
#endif
        for (Int j = keys; j < KEYS; ++j)
            for (Int d = 0; d < width; d += LINE) fetch(k + at.later[j] + d), fetch(v + at.later[j] + d);
        multiply(q, lines * LANES, lines, Scattered{k, at}, keys, 0, width, s.sums.data(), KEYS);
        for (Int line = 0; line < lines; ++line) {
            for (Int j = 0; j < keys; j += LANES) store(s.p.data() + line * KEYS + j, totals(s.sums.data() + line * KEYS + j));
            softmax_line(head, line, from, keys, s.p.data() + line * KEYS, s.p.data() + line * KEYS);
        }
        float* out = s.out.data() + head * room * width;
        if (lines <= FEW) return add_all(Scattered{v, at}, keys, out);
        for (Int j = 0; j < keys; ++j)
            for (Int d = 0; d < width; d += LANES) store(s.v.data() + j * width + d, Scattered{v, at}.piece(j, d).value);
        add_all(Floats{s.v.data(), width}, keys, out);
    }

    // Weights may be where the scores are.
    template <class Weight>
    void softmax_line(Int head, Int line, Int from, Int keys, const float* scores, Weight* weights) {
        const Int at = position(line), oldest = layer.window ? at - layer.window + 1 : 0;
        const Int seen_from = std::max<Int>(0, oldest - from), seen_to = std::min(keys, at - from + 1);
        if (seen_from >= seen_to) return std::fill(weights, weights + KEYS, Weight{});
        const Int i = head * room + line;
        softmax(factor, scores, seen_from, seen_to, Line{s.maxima[i], s.weights[i], s.out.data() + i * width, width}, weights);
    }

#if defined(BF16_DOTS)
    // bf16 in room that is there for floats: one head's queries, and a tile's values.
    BFloat16* halves(Int head) const { return reinterpret_cast<BFloat16*>(s.q.data() + head * lines * width); }

    // From a row on: keys, then values.
    NextTile next_tile(Int head, const KeyOffsets& at, Int row) const {
        return {layer.keys + head * width, layer.values + head * width, at.later, width, row};
    }

    template <class Beside>
    ValuePairs laid_values(Int head, const KeyOffsets& at, Beside beside) const {
        const ValuePairs values{reinterpret_cast<BFloat16*>(s.v.data()), width};
        values.lay(layer.values + head * width, at, beside);
        return values;
    }
#endif

#if defined(BF16_DOTS) && !defined(BF16_TILES)
    // As `process_tile`, a few lines after the other, whose scores and weights stay near. Weights are rounded to bf16 before
    // values are multiplied with them, their sum is not.
    void process_in_dots(Int head, const KeyOffsets& at, Int from, Int keys) {
        const KeyPairs laid{s.keys.data(), width};
        NextTile next = next_tile(head, at, 0);
        const auto ask = [&](Int rows) { return [&next, rows] { next.ask(rows); }; };
        laid.lay(layer.keys + head * width, at, ask(std::max<Int>(1, 320 / width)));  // a third in all, and the rest one by one
        const ValuePairs values = laid_values(head, at, ask(1));
        few_at_once(lines, [&](auto count, Int line) {
            alignas(LINE_BYTES) float scores[count * KEYS];
            alignas(LINE_BYTES) BFloat16 weights[count * KEYS];
            laid.score<count>(halves(head) + line * width, scores, ask(1));
            for (Int i = 0; i < count; ++i) softmax_line(head, line + i, from, keys, scores + i * KEYS, weights + i * KEYS);
            add_values<count>(weights, values, s.out.data() + (head * room + line) * width, ask(1));
        });
    }
#endif

#if defined(BF16_TILES)
    bool whole_groups() const { return lines > ONE_BY_ONE; }  // tiles are as wide as 16 lines, whether or not they are there

    // One head's lines.
    Activations queries(Int head) const { return {halves(head), lines, width}; }

    // 16 of them.
    void pack_queries(const Rows& query, Int head, Int line) {
        const BFloat16* from[TILE_ROWS];
        for (Int i = 0; i < TILE_ROWS; ++i) from[i] = query_of(query, head, line + i);
        for (Int d = 0; d < width; d += TILE_DEPTH)
            put_square([&](Int i) { return operand(from[i] + d); }, queries(head).at(line, d));
    }

    // As `process_tile`. Weights are rounded to bf16 before values are multiplied with them, their sum is not.
    void process_in_amx_tiles(Int head, const KeyOffsets& at, Int from, Int keys) {
        const KeyTiles tiles(layer.keys + head * width, at, width, s.keys.data());
        const Activations q = queries(head);
        alignas(LINE_BYTES) float scores[2][KEYS * TILE_ROWS];  // a group's, and the next's, which are multiplied meanwhile
        tiles.score(tiles_of(q, 0), scores[0]);
        for (Int line = 0, next; line < lines; line = next) {
            next = line + GROUP;
            float* const mine = scores[line / GROUP % 2];
            if (next < lines) tiles.score(tiles_of(q, next), scores[next / GROUP % 2]);
            if (lines - line > ONE_BY_ONE)
                softmax_group(head, line, from, mine);
            else
                softmax_each(head, line, from, keys, mine);
        }
        NextTile next = next_tile(head, at, KEYS);  // its keys were asked for
        const ValueTiles tiles_of_values{laid_values(head, at, [&] { next.ask(2); })};
        for (Int line = 0; line < lines; line += GROUP)
            tiles_of_values.add(s.rounded_weights.data() + line * KEYS, whole_groups(), s.out.data() + (head * room + line) * width);
    }

    void softmax_group(Int head, Int line, Int from, float* scores) {
        IntVec at;
        memcpy(&at, s.positions.data() + line, sizeof at);
        at -= int32_t(from);
        const IntVec oldest = layer.window ? at - int32_t(layer.window - 1) : IntVec{};
        const Int i = head * room + line;
        softmax(factor, scores, oldest, at + 1, LineGroup{s.maxima.data() + i, s.weights.data() + i, s.out.data() + i * width, width},
                s.rounded_weights.data() + line * KEYS);
    }

    // What a group's last lines have, up to ONE_BY_ONE.
    void softmax_each(Int head, Int line, Int from, Int keys, const float* scores) {
        float* p = s.p.data();
        const Int count = lines - line;
        for (Int j = 0; j < KEYS; j += TILE_ROWS) put_sums(scores + j * TILE_ROWS, count, p + j, KEYS);
        for (Int i = 0; i < count; ++i)
            softmax_line(head, line + i, from, keys, p + i * KEYS, s.rounded_weights.data() + (line + i) * KEYS);
    }
#endif

    // out += p . v for all lines
    template <class Values>
    void add_all(const Values& v, Int keys, float* out) {
        few_at_once(lines, [&](auto count, Int line) {
            add_values<count>(s.p.data() + line * KEYS, v, keys, width, out + line * width);
        });
    }

    const AttentionTask& task;
    const Cache& layer;
    const KeyRange range;
    AttentionScratch& s;
    const Int groups, width, lines, room, row;
    const float factor;
};

// Number `i` of `tasks`.
inline void attend(const std::vector<AttentionTask>& tasks, size_t i, const Batch& batch, const Rows& query, const Cache& layer,
                   AttentionScratch& s, BFloat16* out) {
    Attention attention(tasks[i], batch, query, layer, s);
    if (i + 1 == tasks.size()) return attention.run(nullptr, out);
    const KeyRange next(tasks[i + 1], batch, layer);
    attention.run(&next, out);
}

