// The product of a few rows of a weight with activations, in tiles. Sums are floats. Knows nothing of adapters or models.
#pragma once

#include "linear.h"

constexpr Int BLOCK = 4 * TILE_ROWS;  // outputs that a thread takes at most at a time
// Of a weight that is read once, at most so much at a time: the next block comes to the second-level cache beside it.
constexpr Int block_bytes(Int rows) { return rows <= GROUP ? 160 * 1024 : INT64_MAX; }
constexpr Int DEPTH = CODE_BLOCK;  // inputs whose weights are laid out before they are multiplied: so few that both overlap

// Rows [out, out + outs) of a weight. In memory's order where a tile can be loaded from there; laid out as tiles where
// not: all at once for many rows of activations, a few inputs after the other for those that are read once.
class Block {
  public:
    // `next`: where the thread will read after this, or null. Memory is asked for it meanwhile, as much as this is.
    Block(const Linear& linear, Int out, Int outs, Int rows, const void* next, Scratch& scratch)
        : linear(linear), out(out), outs(outs), tiles((outs + TILE_ROWS - 1) / TILE_ROWS),
          turns((rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE), end(linear.stride()), next(static_cast<const uint8_t*>(next)), scratch(scratch) {
        direct = linear.halves && linear.inputs % TILE_DEPTH == 0 && outs % TILE_ROWS == 0;
        if (direct) end = linear.inputs;
        depth = direct || rows > GROUP ? end : std::min(end, DEPTH);
        if (!linear.halves && linear.inputs % CODE_BLOCK == 0) {
            const Int count = linear.inputs / CODE_BLOCK;
            scratch.scales.fit(outs * count);
            linear.codes.scales(out * count, outs * count, scratch.scale_table, scratch.scales.data());
        }
        if (direct) return;
        scratch.weights.fit(tiles * TILE_ROWS * depth);
        if (depth == end) fill(0, end);
    }

    // y[m][n] = x[m] . w[n] for up to ROWS_AT_ONCE rows from `row`; y has BLOCK columns. Returns how many they are.
    Int products(const Inputs& inputs, Int row, float* y) {
        const Activations& x = inputs.of(linear);
        const bool both = row + GROUP < x.rows && depth == end;
        if (both) {
            Int n = 0;
            for (; n + 2 <= tiles; n += 2) take<2, 2>(n, x, row, y);
            if (n < tiles) take<1, 2>(n, x, row, y);
        } else {
            take_all<4>(x, row, y);
        }
        if (++turn == turns) next = nullptr;  // it is there
        return x.group(row) + (both ? x.group(row + GROUP) : 0);
    }

  private:
    // All tiles with one group of rows.
    template <int MOST>
    void take_all(const Activations& x, Int row, float* y) {
        if (tiles == MOST) return take<MOST, 1>(0, x, row, y);
        if constexpr (MOST > 1) take_all<MOST - 1>(x, row, y);
    }

    // Tiles [n, n + W) with U groups of rows.
    template <int W, int U>
    void take(Int n, const Activations& x, Int row, float* y) {
        ActivationTiles at[U];
        for (Int u = 0; u < U; ++u) at[u] = tiles_of(x, row + u * GROUP);
        clear_tiles<W * U>();
        for (Int from = 0, to; from < end; from = to) {
            to = std::min(from + depth, end);
            if (depth < end) fill(from, to);
            add_tiles<W, U>(weights(n), at, from, to);
        }
        alignas(LINE_BYTES) float sums[W * U * TILE_SUMS];
        store_tiles<W * U>(sums);
        for (Int w = 0; w < W; ++w)
            for (Int u = 0; u < U; ++u)
                put_sums(sums + (w * U + u) * TILE_SUMS, x.group(row + u * GROUP), y + u * GROUP * BLOCK + (n + w) * TILE_ROWS, BLOCK);
    }

    WeightTiles weights(Int n) const {
        if (!direct) return {scratch.weights.data() + n * depth * TILE_ROWS, LINE_BYTES, depth * TILE_ROWS, TILE_NUMBERS, nullptr};
        const Int inputs = linear.inputs;
        const BFloat16* data = linear.halves + (out + n * TILE_ROWS) * inputs;
        const uint8_t* meanwhile = next ? next + n * TILE_ROWS * linear.row_bytes() : nullptr;
        const auto part = [&](Int number) { return TILE_ROWS * number / turns * LINE; };
        return {data, inputs * 2, TILE_ROWS * inputs, TILE_DEPTH, reinterpret_cast<const BFloat16*>(meanwhile), part(turn), part(turn + 1)};
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
        const uint8_t *all = linear.codes.data + out * row, *ahead = next + from * outs / 2;
        for (Int i = from; i < to; i += CODE_BLOCK) {
            const uint8_t* codes = all + i / 2;
            const float* scale = scratch.scales.data() + i / CODE_BLOCK;
            for (Int first = 0; first < outs; first += TILE_ROWS) {
                Number* at = place(first, i);
                for (Int n = std::min(TILE_ROWS, outs - first); n; --n) {
                    if (next && n % 2) fetch(ahead);  // two rows' are a line
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
    const Int out, outs, tiles, turns;  // `turns`: how often `products` is asked
    Int end, depth, turn = 0;
    const uint8_t* next;
    Scratch& scratch;
    bool direct;
};
