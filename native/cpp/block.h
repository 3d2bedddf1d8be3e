// The product of a few rows of a weight with activations, a vector at a time. Sums are floats. Knows nothing of adapters
// or models.
#pragma once

#include "linear.h"

constexpr Int BLOCK = 48;  // outputs that a thread takes at most at a time
// Inputs after which a tile's sums are put aside, so that x stays in the nearest cache.
constexpr Int DEPTH = 3072 / sizeof(Number);
constexpr Int NEAR = 32 * 1024 / sizeof(Number);  // numbers of x that stay there anyway

constexpr Int LEAST_ROWS = 4 * GROUP;  // that are multiplied with one block after the other

// Outputs that a thread takes at most. Of a weight that is read for several groups of rows, few enough for the next block to
// come to the second-level cache beside it. Of one that is read once, only a few rows have to wait in a cache.
inline Int widest(const Linear& linear, Int rows) {
    constexpr Int READ_AGAIN = 384 * 1024;  // bytes
    return rows <= GROUP ? BLOCK : std::min(BLOCK, READ_AGAIN / linear.row_bytes());
}

// Rows [out, out + outs) of a weight, in the form in which `rows` rows of activations are multiplied with them.
class Block {
  public:
    // `next`: where the thread will read after this. Memory is asked for it meanwhile, as much as this is, where this is
    // read several times; where it is read once, for rows a few ahead, wherever a block ends.
    Block(const Linear& linear, Int out, Int outs, const Range& range, const NextRows& next, Scratch& scratch)
        : linear(linear), out(out), outs(outs), scratch(scratch) {
        scratch.sums.fit(GROUP * BLOCK);
        const Int inputs = linear.inputs, rows = range.count();
        direct = inputs % (linear.halves ? PAIR : CODE_BLOCK) == 0 && (rows <= DIRECT || (linear.halves && PAIR_VECTORS == 1));
#if !defined(__AVX512F__)
        direct &= linear.halves != nullptr;
#endif
        if (linear.halves) choose_reading(rows, static_cast<const BFloat16*>(next.data()));
        if (!linear.halves && inputs % CODE_BLOCK == 0) {
            const Int count = inputs / CODE_BLOCK;
            scratch.scales.fit(outs * count);
            linear.codes.scales(out * count, outs * count, scratch.scale_table, scratch.scales.data());
        }
        if (direct) return;
        scratch.weights.fit(outs * linear.stride());
        for (Int n = 0; n < outs; ++n) pack_row(n, scratch.weights.data() + n * linear.stride());
    }

    // To be called first.
    void multiply_all(const Inputs&) {}  // here, groups are multiplied when they are asked for

    // y[m][n] = x[m] . w[n] for a group of rows from `row`; y has BLOCK columns. Returns how many they are.
    Int products(const Inputs& inputs, Int row, float* y) {
        const Activations& x = inputs.of(linear);
        const Int rows = x.group(row);
        Vec* sums = scratch.sums.data();
        const Int end = direct ? linear.inputs : linear.stride(), most = whole ? end : DEPTH;
        const Int parts = (end + most - 1) / most, depth = padded((end + parts - 1) / parts, CODE_BLOCK);
        const auto add_all = [&](Vec* by_column) {
            for (Int from = 0; from < end; from += depth)
                add(x.at(row), x.step(row), rows, from, std::min(from + depth, end), sums, from + depth < end ? nullptr : by_column);
        };
#if defined(__AVX512F__)
        if (rows == FOLDED_ROWS) {
            Vec columns[BLOCK];
            std::fill(columns + outs, columns + padded(outs, LANES), Vec{});
            add_all(columns);
            for (Int n = 0; n < outs; n += LANES) unfold_rows(columns + n, y + n, BLOCK);
            return rows;
        }
#endif
        add_all(nullptr);
        for (Int m = 0; m < rows; ++m) {
            Int n = 0;
            for (; n + LANES <= outs; n += LANES) store(y + m * BLOCK + n, totals(sums + m * BLOCK + n));
            for (; n < outs; ++n) y[m * BLOCK + n] = total(sums[m * BLOCK + n]);
        }
        return rows;
    }

  private:
    // Dot products are so fast that memory has to be asked with care.
    void choose_reading(Int rows, const BFloat16* next) {
        const Int inputs = linear.inputs;
        asked = linear.halves + (out + Halves::AHEAD) * inputs;
        if (PAIR_VECTORS > 1) return;
        whole = direct && rows <= WholeHalves::MOST && rows * inputs <= NEAR;
        if (rows > GROUP && rows <= DIRECT && next) asked = next;
    }

    void add(const Number* x, Int step, Int rows, Int from, Int to, Vec* sums, Vec* by_column) const {
        const Int inputs = linear.inputs;
        if (!direct) {
            multiply(x, step, rows, Numbers{scratch.weights.data(), linear.stride()}, outs, from, to, sums, BLOCK, by_column);
        } else if (whole) {
            multiply(x, step, rows, WholeHalves{linear.halves + out * inputs, inputs}, outs, from, to, sums, BLOCK, by_column);
        } else if (linear.halves) {
            multiply(x, step, rows, Halves{linear.halves + out * inputs, inputs, asked}, outs, from, to, sums, BLOCK, by_column);
        } else {
#if defined(__AVX512F__)
            const CodeRows rows_of{linear.codes.data + out * inputs / 2, scratch.scales.data(), load(linear.codes.values),
                                   size_t(inputs / CODE_BLOCK)};
            multiply(x, step, rows, rows_of, outs, from, to, sums, BLOCK, by_column);
#endif
        }
    }

    void pack_row(Int n, Number* to) const {
        const Int inputs = linear.inputs, at = (out + n) * inputs;
        if (linear.halves)
            pack(linear.halves + at, to, PER_VECTOR, inputs, linear.stride());
        else if (inputs % CODE_BLOCK)
            pack_codes(at, to);
        else
            pack_code_blocks(at, scratch.scales.data() + n * (inputs / CODE_BLOCK), to);
    }

    // A row that begins within a block.
    void pack_codes(Int at, Number* to) const {
        std::fill(to, to + linear.stride(), Number{});
        for (Int i = 0; i < linear.inputs; ++i) to[place_beside_codes(i)] = number(linear.codes.weight(at + i));
    }

    void pack_code_blocks(Int at, const float* scales, Number* to) const {
        const CodeTable table(linear.codes.values);
        for (Int i = 0; i < linear.inputs; i += CODE_BLOCK) table.pack(linear.codes.data + (at + i) / 2, scales[i / CODE_BLOCK], to + i);
    }

    const Linear& linear;
    const Int out, outs;
    Scratch& scratch;
    bool direct, whole = false;
    const BFloat16* asked = nullptr;  // while the weight is read in bf16, in rows as long as its own
};
