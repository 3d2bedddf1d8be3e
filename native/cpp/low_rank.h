// s * B (A x) for rows of many adapters (SGMV, arXiv 2310.18547): every adapter at its own rank, its bytes read once
// for the rows that are multiplied together. Knows nothing of models.
#pragma once

#include "expand.h"
#include "read_ahead.h"

// Rows [start, stop) belong to the adapter whose parts, one for each layer, are at `parts`.
struct Term {
    Int start;
    Int stop;
    const Part* parts;
};

// At most one term covers a row.
struct Terms {
    const Term* data;
    Int count;

    const Term* begin() const { return data; }
    const Term* end() const { return data + count; }

    Int widest(Int layer) const {
        Int rank = 0;
        for (const Term& term : *this) rank = std::max(rank, term.parts[layer].rank);
        return rank;
    }
};

// Rows of A as a source, of which memory was asked before.
struct RankRows {
    using X = Number;
    static constexpr int ROWS = Halves::ROWS, PER_VECTOR = Halves::PER_VECTOR;
    const BFloat16* data;
    Int stride;

    using Piece = Halves::Piece;
    Piece piece(Int n, Int k) const { return {PackedPair(data + n * stride + k)}; }
};

// Rows [start, stop) of one term, all in one group or, if h is tiled, in two, and a range of its ranks, at one layer.
struct Shrink {
    using Ahead = ReadAhead<Shrink>;

    Int start, stop, first, last;
    const Part* part;
    const Activations* x;
    Int inputs, outputs;
    float* h;  // of its rows; if tiled, of all
    Int h_stride;
    float* plus;  // if not null, [rows, outputs] for what is expanded at once, while nothing else is read
    bool tiled;

    // h[t] = s * A x[t], and B h[t] if it is wanted.
    void run(Buffer<Number>& block, Ahead& ahead) const {
        for (Int from = first; from < last; from += RANKS) shrink(from, std::min(RANKS, last - from), block, ahead);
        if (plus) expand_at_once(block, ahead);
    }

    Int line_groups() const { return shrunk_groups() + (plus ? (part->rank + RANKS_AT_ONCE - 1) / RANKS_AT_ONCE : 0); }

    Lines lines(Int group) const {
        const Int shrunk = shrunk_groups();
        if (group >= shrunk) {
            const Int rank = (group - shrunk) * RANKS_AT_ONCE;
            return {part->b + rank * outputs, std::min(RANKS_AT_ONCE, part->rank - rank), outputs, outputs / LINE};
        }
        const Int rank = first + group * ranks_together(), ranks = std::min(ranks_together(), last - rank);
        if (direct(ranks)) return {inputs_of(rank), ranks, inputs, inputs / LINE};
        return {inputs_of(rank), 1, 0, ranks * inputs / LINE};
    }

  private:
    static constexpr Int RANKS_AT_ONCE = 4;  // ranks of B

    const BFloat16* inputs_of(Int rank) const { return part->a + rank * inputs; }
    Int shrunk_groups() const { return (last - first + ranks_together() - 1) / ranks_together(); }

#if defined(BF16_TILES)
    Int ranks_together() const { return RANKS; }
    bool direct(Int ranks) const { return ranks == TILE_ROWS && inputs % TILE_DEPTH == 0; }

    // h is rounded to bf16, as its tiles are.
    void shrink(Int from, Int ranks, Buffer<Number>& block, Ahead& ahead) const {
        const BFloat16* a = inputs_of(from);
        const Int wide = padded(inputs, TILE_DEPTH);
        if (!direct(ranks)) {
            block.fit(TILE_ROWS * wide);
            std::fill(block.data(), block.data() + TILE_ROWS * wide, Number{});
            for (Int r = 0; r < ranks; ++r) {
                ahead.read(inputs / LINE);
                std::copy_n(a + r * inputs, inputs, block.data() + r * wide);
            }
            a = block.data();
        }
        const WeightTiles tiles{a, wide * 2, 0, TILE_DEPTH};
        const auto beside = [&] {
            if (direct(ranks)) ahead.read(TILE_ROWS);
        };
        const Int next = start / GROUP * GROUP + GROUP;
        alignas(LINE_BYTES) float found[2 * TILE_SUMS];
        clear_tiles<2>();
        if (next < stop) {
            add_tiles<1, 2>(tiles, {tiles_of(*x, start), tiles_of(*x, next)}, 0, wide, beside);
            store_tiles<2>(found);
        } else {
            add_tiles<1, 1>(tiles, {tiles_of(*x, start)}, 0, wide, beside);
            store_tiles<1>(found);
        }
        if (!tiled) return put_rows(from, ranks, found);
        const ShrunkTiles to{h, h_stride / RANKS};
        to.put(start, std::min(next, stop), from, ranks, found, float(part->scaling));
        if (next < stop) to.put(next, stop, from, ranks, found + TILE_SUMS, float(part->scaling));
    }

    // sums are [rank][row]
    void put_rows(Int from, Int ranks, const float* sums) const {
        float rows[GROUP * RANKS];
        put_sums(sums, stop - start, rows, RANKS);
        for (Int t = 0; t < stop - start; ++t)
            for (Int r = 0; r < ranks; ++r)
                h[t * h_stride + from + r] = BFloat16::of(rows[t * RANKS + r] * float(part->scaling));
    }
#else
    // As many as are multiplied together, so that they are read step by step.
    Int ranks_together() const { return columns_beside<RankRows>(int(std::min<Int>(stop - start, RankRows::ROWS))); }
    bool direct(Int) const { return inputs % PAIR == 0; }

    void shrink(Int from, Int ranks, Buffer<Number>& block, Ahead& ahead) const {
        const Int rows = stop - start, step = x->step(start);
        const BFloat16* a = inputs_of(from);
        Vec vectors[GROUP * RANKS];
        if (direct(ranks)) {
            // Told of all rows of a group at once: to tell of each line between multiplications costs more than it brings.
            for (Int r = 0, some; r < ranks; r += some) {
                some = std::min(ranks_together(), ranks - r);
                ahead.read(some * inputs / LINE);
                multiply(x->at(start), step, rows, RankRows{a + r * inputs, inputs}, some, 0, inputs, vectors + r, RANKS);
            }
        } else {
            const Int wide = padded(inputs, PAIR);
            block.fit(ranks * wide);
            for (Int r = 0; r < ranks; ++r) {
                ahead.read(inputs / LINE);
                pack(a + r * inputs, block.data() + r * wide, PER_VECTOR, inputs, wide);
            }
            multiply(x->at(start), step, rows, Numbers{block.data(), wide}, ranks, 0, wide, vectors, RANKS);
        }
        for (Int t = 0; t < rows; ++t) {
            float* const to = h + t * h_stride + from;
            const Vec* const sums = vectors + t * RANKS;
            Int r = 0;
            for (; r + LANES <= ranks; r += LANES) store(to + r, totals(sums + r) * float(part->scaling));
            for (; r < ranks; ++r) to[r] = total(sums[r]) * float(part->scaling);
        }
    }
#endif

    // plus[t] = B h[t], a few ranks and two rows at a time. The order of additions is that of `expand`.
    void expand_at_once(Buffer<Number>& room, Ahead& ahead) const {
        const Int numbers = (stop - start) * outputs;
        for (Int from = 0, to; from < part->rank; from = to) {
            to = from + std::min(SUMMED, part->rank - from);
            if (!from) {
                sum_ranks(from, to, plus, ahead);
                continue;
            }
            room.fit(numbers * Int(sizeof(float) / sizeof(Number)));
            float* const some = reinterpret_cast<float*>(room.data());
            sum_ranks(from, to, some, ahead);
            for (Int i = 0; i < numbers; ++i) plus[i] += some[i];
        }
    }

    // sums[t] = B h[t] of ranks [from, to).
    void sum_ranks(Int from, Int to, float* sums, Ahead& ahead) const {
        Int r = from;
        for (; r + RANKS_AT_ONCE <= to; r += RANKS_AT_ONCE) expand_ranks<RANKS_AT_ONCE>(r, r == from, sums, ahead);
        for (; r < to; ++r) expand_ranks<1>(r, r == from, sums, ahead);
    }

    template <int R>
    void expand_ranks(Int r, bool first, float* to, Ahead& ahead) const {
        const BFloat16* b = part->b + r * outputs;
        for (Int t = 0, rows = stop - start; t < rows; t += 2, to += 2 * outputs) {
            const auto read = [&, once = t == 0] {
                if (once) ahead.read(R);
            };
            const auto add = t + 2 <= rows ? add_ranks<R, 2, decltype(read)> : add_ranks<R, 1, decltype(read)>;
            add(h + t * h_stride + r, h_stride, b, outputs, first, to, read);
        }
    }
};

// The adapters' terms at one layer: h = s A x of all rows, and B h of those that are expanded at once, by the thread that
// shrinks them. Those are in `plus`, if it is not null: of a small batch all rows, of a large one those of terms with FEW_ROWS at
// most, one after the other.
struct LayerTerms {
    Int layer, inputs, outputs;
    float* h;
    Int h_stride;
    float* plus;
    bool large;
    float* few_h;  // what h is of those rows, if it is in tiles of the others

    static constexpr Int FEW_ROWS = 8;  // for more, B is worth reading with every block, and laying out in tiles
#if defined(BF16_TILES)
    bool tiled() const { return large; }
#else
    bool tiled() const { return false; }
#endif

    static bool few(const Term& term) { return term.stop - term.start <= FEW_ROWS; }
    bool at_once(const Term& term) const { return plus && (!large || few(term)); }

    // Calls `what(term, seat)`: which row of `plus` is its first.
    template <class Do>
    void each_term(const Terms& terms, Do what) const {
        Int seats = 0;
        for (const Term& term : terms) {
            what(term, large ? seats : term.start);
            if (at_once(term)) seats += term.stop - term.start;
        }
    }

    void append(const Terms& terms, const Activations& x, std::vector<Shrink>& found) const {
        each_term(terms, [&](const Term& term, Int seat) {
            const Part* part = term.parts + layer;
            const bool whole = at_once(term), in_tiles = tiled() && !whole;
            const Int ranks = whole ? std::max<Int>(part->rank, 1) : RANKS, groups = in_tiles ? ROWS_AT_ONCE : GROUP;
            for (Int start = term.start, stop; start < term.stop; start = stop) {
                stop = std::min(start / groups * groups + groups, term.stop);
                const Int place = seat + start - term.start;
                float* const to = in_tiles ? h : tiled() ? few_h + place * h_stride : h + start * h_stride;
                float* const expanded = whole ? plus + place * outputs : nullptr;
                for (Int first = 0; first < part->rank; first += ranks)
                    found.push_back({start, stop, first, std::min(first + ranks, part->rank), part, &x, inputs, outputs, to, h_stride,
                                     expanded, in_tiles});
            }
        });
    }

    // The layer's terms on rows [row, row + count), added to y, whose row 0 is `row`; then their gains.
    void apply_to_rows(const Terms& terms, Int row, Int count, Int out, Int outs, float* y, Int y_stride) const {
        each_term(terms, [&](const Term& term, Int seat) {
            const Part& part = term.parts[layer];
            const Int start = std::max(row, term.start), stop = std::min(row + count, term.stop);
            if (part.rank == 0 || start >= stop) return;
            float* rows = y + (start - row) * y_stride;
            const bool whole = at_once(term);
            if (!whole) expand(h + start * h_stride, h_stride, stop - start, part, outputs, out, outs, rows, y_stride);
            const float* expanded = whole ? plus + (seat + start - term.start) * outputs + out : nullptr;
            for (Int t = 0; t < stop - start; ++t) {
                float* values = rows + t * y_stride;
                if (whole) change(values, expanded + t * outputs, outs, [](auto a, auto b) { return a + b; });
                if (part.gain) change(values, part.gain + out, outs, [](auto a, auto b) { return a * b; });
            }
        });
    }

#if defined(BF16_TILES)
    // The same of sums in tiles, [output][row]: `sums(row, n)` are those of a row's group and the n-th 16 outputs.
    template <class Sums>
    void apply_to_tiles(const Terms& terms, Int row, Int count, Int out, Int outs, Buffer<Number>& room, Sums sums) const {
        for (const Term& term : terms) {
            const Part& part = term.parts[layer];
            const Int start = std::max(row, term.start), stop = std::min(row + count, term.stop);
            if (part.rank && start < stop && !at_once(term))
                expand_tiles(ShrunkTiles{h, h_stride / RANKS}, start, stop, part, outputs, out, outs, room, sums);
        }
        for (Int first = row; plus && first < row + count; first += GROUP) {
            const float *added[GROUP] = {}, *gains[GROUP] = {};
            each_term(terms, [&](const Term& term, Int seat) {
                const Part& part = term.parts[layer];
                if (!part.rank || !at_once(term)) return;
                for (Int t = std::max(first, term.start); t < std::min(first + GROUP, term.stop); ++t) {
                    added[t - first] = plus + (seat + t - term.start) * outputs + out;
                    gains[t - first] = part.gain ? part.gain + out : nullptr;
                }
            });
            add_expanded(added, gains, first, outs, sums);
        }
    }
#endif

    template <class How>
    static void change(float* values, const float* by, Int count, How how) {
        Int n = 0;
        for (; n + LANES <= count; n += LANES) store(values + n, how(load(values + n), load(by + n)));
        for (; n < count; ++n) values[n] = how(values[n], by[n]);
    }

    // Asks for the bytes of B that will be read: each rank's is a row of its own, far from the last one's.
    void fetch_expansion(const Terms& terms, Int row, Int count, Int out, Int outs) const {
        for (const Term& term : terms) {
            if (at_once(term) || term.stop <= row || row + count <= term.start) continue;
            const Part& part = term.parts[layer];
            for (Int r = 0; r < part.rank; ++r)
                for (Int n = 0; n < outs; n += LINE) fetch(part.b + r * outputs + out + n);
        }
    }
};
