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
    float* h;  // of all rows
    Int h_stride;
    float* plus;  // if not null, [rows, outputs] for what is expanded at once, while nothing else is read
    bool tiled;  // how h lies

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
        to.put(start, std::min(next, stop), from / RANKS, found, float(part->scaling));
        if (next < stop) to.put(next, stop, from / RANKS, found + TILE_SUMS, float(part->scaling));
    }

    // sums are [rank][row]
    void put_rows(Int from, Int ranks, const float* sums) const {
        float rows[GROUP * RANKS];
        put_sums(sums, stop - start, rows, RANKS);
        for (Int t = 0; t < stop - start; ++t)
            for (Int r = 0; r < ranks; ++r)
                h[(start + t) * h_stride + from + r] = BFloat16::of(rows[t * RANKS + r] * float(part->scaling));
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
            float* const to = h + (start + t) * h_stride + from;
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
        float* const all = plus + start * outputs;
        for (Int from = 0, to; from < part->rank; from = to) {
            to = from + std::min(SUMMED, part->rank - from);
            if (!from) {
                sum_ranks(from, to, all, ahead);
                continue;
            }
            room.fit(numbers * Int(sizeof(float) / sizeof(Number)));
            float* const some = reinterpret_cast<float*>(room.data());
            sum_ranks(from, to, some, ahead);
            for (Int i = 0; i < numbers; ++i) all[i] += some[i];
        }
    }

    // sums[t] = B h[t] of ranks [from, to), for the rows from `start` on.
    void sum_ranks(Int from, Int to, float* sums, Ahead& ahead) const {
        Int r = from;
        for (; r + RANKS_AT_ONCE <= to; r += RANKS_AT_ONCE) expand_ranks<RANKS_AT_ONCE>(r, r == from, sums, ahead);
        for (; r < to; ++r) expand_ranks<1>(r, r == from, sums, ahead);
    }

    template <int R>
    void expand_ranks(Int r, bool first, float* to, Ahead& ahead) const {
        const BFloat16* b = part->b + r * outputs;
        for (Int t = start; t < stop; t += 2, to += 2 * outputs) {
            const auto read = [&, once = t == start] {
                if (once) ahead.read(R);
            };
            const auto add = t + 2 <= stop ? add_ranks<R, 2, decltype(read)> : add_ranks<R, 1, decltype(read)>;
            add(h + t * h_stride + r, h_stride, b, outputs, first, to, read);
        }
    }
};

// The adapters' terms at one layer: h = s A x of all rows, and, if `plus` is not null, B h as well.
struct LayerTerms {
    Int layer, inputs, outputs;
    float* h;
    Int h_stride;
    float* plus;
    bool tiled;  // h, as of many rows

    void append(const Terms& terms, const Activations& x, std::vector<Shrink>& found) const {
        for (const Term& term : terms) {
            const Part* part = term.parts + layer;
            const Int ranks = plus ? std::max<Int>(part->rank, 1) : RANKS;
            const Int groups = tiled ? ROWS_AT_ONCE : GROUP;
            for (Int start = term.start, stop; start < term.stop; start = stop) {
                stop = std::min(start / groups * groups + groups, term.stop);
                for (Int first = 0; first < part->rank; first += ranks)
                    found.push_back({start, stop, first, std::min(first + ranks, part->rank), part, &x, inputs, outputs, h,
                                     h_stride, plus, tiled});
            }
        }
    }

    // The layer's terms on rows [row, row + count), added to y, whose row 0 is `row`; then their gains.
    void apply_to_rows(const Terms& terms, Int row, Int count, Int out, Int outs, float* y, Int y_stride) const {
        for (const Term& term : terms) {
            const Part& part = term.parts[layer];
            const Int start = std::max(row, term.start), stop = std::min(row + count, term.stop);
            if (part.rank == 0 || start >= stop) continue;
            float* rows = y + (start - row) * y_stride;
            if (!plus) expand(h + start * h_stride, h_stride, stop - start, part, outputs, out, outs, rows, y_stride);
            for (Int t = 0; t < stop - start; ++t) {
                float* values = rows + t * y_stride;
                if (plus) change(values, plus + (start + t) * outputs + out, outs, [](auto a, auto b) { return a + b; });
                if (part.gain) change(values, part.gain + out, outs, [](auto a, auto b) { return a * b; });
            }
        }
    }

#if defined(BF16_TILES)
    // The same of sums in tiles, [output][row]: `sums(row, n)` are those of a row's group and the n-th 16 outputs.
    template <class Sums>
    void apply_to_tiles(const Terms& terms, Int row, Int count, Int out, Int outs, Buffer<Number>& room, Sums sums) const {
        for (const Term& term : terms) {
            const Part& part = term.parts[layer];
            const Int start = std::max(row, term.start), stop = std::min(row + count, term.stop);
            if (part.rank && start < stop)
                expand_tiles(ShrunkTiles{h, h_stride / RANKS}, start, stop, part, outputs, out, outs, room, sums);
        }
    }
#endif

    template <class How>
    static void change(float* values, const float* by, Int count, How how) {
        Int n = 0;
        for (; n + LANES <= count; n += LANES) store(values + n, how(load(values + n), load(by + n)));
        for (; n < count; ++n) values[n] = how(values[n], by[n]);
    }

    // Asks for the bytes of B that `apply_to_rows` will read: each rank's is a row of its own, far from the last one's.
    void fetch_expansion(const Terms& terms, Int out, Int outs) const {
        if (plus) return;
        for (const Term& term : terms) {
            const Part& part = term.parts[layer];
            for (Int r = 0; r < part.rank; ++r)
                for (Int n = 0; n < outs; n += LINE) fetch(part.b + r * outputs + out + n);
        }
    }
};
