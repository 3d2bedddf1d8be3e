// The product of a few rows of a weight with activations, in tiles. Sums are floats. Knows nothing of adapters or models.
#pragma once

#include "linear.h"
#include "read_ahead.h"

constexpr Int BLOCK = 4 * TILE_ROWS;  // outputs that a thread takes at most at a time
constexpr Int LEAST_ROWS = 8 * GROUP;  // that are multiplied with one block after the other
constexpr Int DEPTH = CODE_BLOCK;  // inputs whose weights are laid out before few rows are multiplied: so few that both overlap
// Many rows of more inputs than WHOLE are multiplied with SLICE inputs after the other: so much of a block stays in the
// nearest cache until all rows have met it.
constexpr Int WHOLE = 1536, SLICE = 3 * CODE_BLOCK;

// Outputs that a thread takes at most. Of a weight that is read once, few enough for the next block to come to the
// second-level cache beside it; with many rows, as many as are multiplied together, and more where reading the rows again
// for each block would cost more than that some threads have nothing to do in the end.
inline Int widest(const Linear& linear, Int rows) {
    constexpr Int READ_ONCE = 160 * 1024, REREAD = 1536 * 1024;  // bytes
    if (rows <= GROUP) return std::min(BLOCK, READ_ONCE / linear.row_bytes());
    return LEAST_ROWS * linear.stride() * Int(sizeof(Number)) > REREAD ? BLOCK : BLOCK / 2;
}

// Rows [out, out + outs) of a weight. In memory's order where a tile can be loaded from there; laid out as tiles where
// not.
class Block {
  public:
    // `next`: where the thread will read after this. Memory is asked for it meanwhile.
    Block(const Linear& linear, Int out, Int outs, const Range& range, const NextRows& next, Scratch& scratch)
        : linear(linear), out(out), outs(outs), tiles((outs + TILE_ROWS - 1) / TILE_ROWS), range(range), next(next), scratch(scratch) {
        direct = linear.halves && linear.inputs % TILE_DEPTH == 0 && outs % TILE_ROWS == 0;
        depth = depth_of(linear);
        scratch.tile_sums.fit(padded(range.count(), GROUP) * tiles * TILE_ROWS);
        if (!linear.halves && linear.inputs % CODE_BLOCK == 0) {
            const Int count = linear.inputs / CODE_BLOCK;
            scratch.scales.fit(outs * count);
            linear.codes.scales(out * count, outs * count, scratch.scale_table, scratch.scales.data());
        }
        if (!direct) scratch.weights.fit(tiles * TILE_ROWS * depth);
    }

    // Multiplies the whole range, first of all. Then `sums` has x[m] . w[n] for 16 of each.
    void multiply_all(const Inputs& inputs) {
        const Activations& x = inputs.of(linear);
        few() ? multiply_few<BLOCK / TILE_ROWS>(x) : multiply_many(x);
    }

    // Where weights were laid out: of no use after they have been multiplied.
    Buffer<Number>& spare() { return scratch.weights; }

    // Sums [16 outputs, 16 rows] of the n-th tile and the group of a row: a group's tiles lie one after the other.
    float* sums(Int row, Int n) const {
        return scratch.tile_sums.data() + ((row - range.first) / GROUP * tiles + n) * TILE_SUMS;
    }

    // y[m][n] = x[m] . w[n] for up to ROWS_AT_ONCE rows from `row`, multiplied before; y has BLOCK columns. Returns how many they are.
    Int products(const Inputs&, Int row, float* y) {
        const Int count = std::min(ROWS_AT_ONCE, range.stop - row);
        for (Int m = 0; m < count; m += GROUP)
            for (Int n = 0; n < tiles; ++n)
                put_sums(sums(row + m, n), std::min(GROUP, count - m), y + m * BLOCK + n * TILE_ROWS, BLOCK);
        return count;
    }

  private:
    bool few() const { return range.count() <= GROUP; }
    Int end() const { return direct ? linear.inputs : linear.stride(); }

    // Inputs after which sums are put aside or, of few rows, other inputs' weights are laid out.
    Int depth_of(const Linear& weight) const {
        const Int all = direct ? weight.inputs : weight.stride();
        if (few()) return direct ? all : std::min(all, DEPTH);
        return all <= WHOLE ? all : SLICE;
    }

    // One group of rows, whose sums stay in tiles.
    template <int W>
    void multiply_few(const Activations& x) {
        if constexpr (W > 1)
            if (tiles < W) return multiply_few<W - 1>(x);
        const ActivationTiles at[] = {tiles_of(x, range.first)};
        const char* ahead = direct ? static_cast<const char*>(next.data()) : nullptr;  // a tile for a tile, in memory's order
        clear_tiles<W>();
        for (Int from = 0, to; from < end(); from = to) {
            to = std::min(from + depth, end());
            if (!direct) fill(from, to);
            add_tiles<W, 1>(weights(0, from), at, from, to, [&] {
                if (!ahead) return;
#pragma GCC unroll 1
                for (Int i = 0; i < TILE_ROWS; ++i, ahead += LINE_BYTES) fetch(ahead);
            });
        }
        store_sums<W, 1>(sums(range.first, 0));
    }

    // One slice of inputs after the other, each with all rows.
    void multiply_many(const Activations& x) {
        for (Int from = 0, to; from < end(); from = to) {
            to = std::min(from + depth, end());
            if (!direct) fill(from, to);
            RowsAhead ahead = direct ? after(to) : RowsAhead();
            const Int readings = (range.count() + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
            const Int each = asked_beside(ahead, readings * tiles * ((to - from) / TILE_DEPTH));
            const auto beside = [&] { ahead.ask(each); };
            for (Int row = range.first; row < range.stop; row += ROWS_AT_ONCE)
                for (Int n = 0; n < tiles; n += 2) {
                    const bool rows = row + GROUP < range.stop, columns = n + 1 < tiles;
                    if (rows && columns) add<2, 2>(n, x, row, from, to, beside);
                    else if (rows) add<1, 2>(n, x, row, from, to, beside);
                    else if (columns) add<2, 1>(n, x, row, from, to, beside);
                    else add<1, 1>(n, x, row, from, to, beside);
                }
        }
    }

    // Tiles [n, n + W) with U groups of rows.
    template <int W, int U, class Beside>
    void add(Int n, const Activations& x, Int row, Int from, Int to, Beside beside) {
        ActivationTiles at[U];
        for (Int u = 0; u < U; ++u) at[u] = tiles_of(x, row + u * GROUP);
        float* const there = sums(row, n);
        if (from)
            load_sums<W, U>(there);
        else
            clear_tiles<W * U>();
        add_tiles<W, U>(weights(n, from), at, from, to, beside);
        store_sums<W, U>(there);
    }

    // What is read when inputs [0, to) have been multiplied: this block's next slice, or of the next block what is read first.
    RowsAhead after(Int to) const {
        if (to < end()) return {linear.halves + out * linear.inputs + to, outs, std::min(depth, end() - to) * 2, linear.row_bytes()};
        if (!next.linear) return {};
        const Linear& other = *next.linear;
        return {next.data(), outs, other.halves ? depth_of(other) * 2 : other.row_bytes(), other.row_bytes()};
    }

    static Int asked_beside(const RowsAhead& ahead, Int read) { return (ahead.lines() + read - 1) / read; }

    template <int W, int U, int T = 0>
    void store_sums(float* to) const {
        store_tile<T>(to + place_of_sums<U>(T));
        if constexpr (T + 1 < W * U) store_sums<W, U, T + 1>(to);
    }

    template <int W, int U, int T = 0>
    void load_sums(const float* from) const {
        load_tile<T>(from + place_of_sums<U>(T), LINE_BYTES);
        if constexpr (T + 1 < W * U) load_sums<W, U, T + 1>(from);
    }

    template <int U>
    Int place_of_sums(int tile) const {
        return (tile % U * tiles + tile / U) * TILE_SUMS;
    }

    WeightTiles weights(Int n, Int from) const {
        if (!direct) return {scratch.weights.data() + n * depth * TILE_ROWS, LINE_BYTES, depth * TILE_ROWS, TILE_NUMBERS};
        const Int inputs = linear.inputs;
        return {linear.halves + (out + n * TILE_ROWS) * inputs + from, inputs * 2, TILE_ROWS * inputs, TILE_DEPTH};
    }

    // Lays inputs [from, to) of all outputs out, at most `depth`: the tiles of 16 outputs one after the other.
    void fill(Int from, Int to) const {
        if (!linear.halves && linear.inputs % CODE_BLOCK == 0) return fill_code_blocks(from, to);
        for (Int n = 0; n < outs; ++n)
            for (Int i = from; i < to; i += CODE_BLOCK) {
                const Int at = (out + n) * linear.inputs + i, left = linear.inputs - i;
                if (!linear.halves)
                    fill_codes(at, left, place(n, i));
                else
                    pack(linear.halves + at, place(n, i), TILE_NUMBERS, std::min(left, CODE_BLOCK), CODE_BLOCK);
            }
        clear_rest(from, to);
    }

    // Where output n's numbers from an input on lie: 32 there, and 32 in the next tile.
    Number* place(Int n, Int i) const {
        return scratch.weights.data() + n / TILE_ROWS * TILE_ROWS * depth + n % TILE_ROWS * TILE_DEPTH +
               i % depth / TILE_DEPTH * TILE_NUMBERS;
    }

    // A block of numbers, of which only `left` are there; they may begin within a block of codes.
    void fill_codes(Int at, Int left, Number* to) const {
        for (Int j = 0; j < CODE_BLOCK; ++j) {
            const Int i = place_beside_codes(j);
            to[i / TILE_DEPTH * TILE_NUMBERS + i % TILE_DEPTH] = j < left ? number(linear.codes.weight(at + j)) : Number{};
        }
    }

    // Asks for what is next in the order of memory, as much as it reads, and brings near what each of its own rows has next:
    // 64 rows are read at a time, too many streams for the processor to foresee.
    void fill_code_blocks(Int from, Int to) const {
        const Int row = linear.inputs / 2, blocks = linear.inputs / CODE_BLOCK;
        const CodeTable table(linear.codes.values);
        const bool asked = next.linear;
        const uint8_t *all = linear.codes.data + out * row, *ahead = static_cast<const uint8_t*>(next.data()) + from * outs / 2;
        for (Int i = from; i < to; i += CODE_BLOCK) {
            const uint8_t* codes = all + i / 2;
            const float* scale = scratch.scales.data() + i / CODE_BLOCK;
            for (Int first = 0; first < outs; first += TILE_ROWS) {
                Number* at = place(first, i);
                for (Int n = std::min(TILE_ROWS, outs - first); n; --n) {
                    if (asked && n % 2) fetch(ahead);  // two rows' are a line
                    fetch_near(codes + LINE_BYTES);
                    table.pack(codes, *scale, at, TILE_NUMBERS);
                    ahead += CODE_BLOCK / 2, codes += row, scale += blocks, at += TILE_DEPTH;
                }
            }
        }
        clear_rest(from, to);
    }

    // Outputs that a tile has room for and the block does not have.
    void clear_rest(Int from, Int to) const {
        for (Int n = outs; n < tiles * TILE_ROWS; ++n)
            for (Int i = from; i < to; i += TILE_DEPTH) std::fill_n(place(n, i), TILE_DEPTH, Number{});
    }

    const Linear& linear;
    const Int out, outs, tiles;
    const Range range;
    const NextRows next;
    Scratch& scratch;
    bool direct;
    Int depth;
};
