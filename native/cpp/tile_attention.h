// The products of attention in tiles, as AMX multiplies them: scores of a tile of keys, and what its values add. Knows
// neither tasks nor which keys a line sees.
#pragma once

#include "activations.h"
#include "value_pairs.h"

#if defined(BF16_TILES)
// 16 keys where they lie if that is one behind the other, as in a block of the cache; else copied together.
inline WeightTiles tile_of_keys(const BFloat16* k, const Int* at, Int width, BFloat16* copied) {
    const Int apart = at[1] - at[0];
    bool even = apart > 0;
    for (Int j = 1; j < TILE_ROWS; ++j) even &= at[j] - at[j - 1] == apart;
    if (even) return {k + at[0], apart * 2, 0, TILE_DEPTH};
    for (Int j = 0; j < TILE_ROWS; ++j) std::copy_n(k + at[j], width, copied + j * width);
    return {copied, width * 2, 0, TILE_DEPTH};
}

// A tile of keys, 16 together, and their scores.
class KeyTiles {
  public:
    // Asks memory for the next tile's keys. There is room for KEYS keys at `copied`.
    KeyTiles(const BFloat16* k, const KeyOffsets& at, Int width, BFloat16* copied) : width(width) {
        for (Int first = 0; first < KEYS; first += TILE_ROWS) {
            tiles[first / TILE_ROWS] = tile_of_keys(k, at.now + first, width, copied + first * width);
            for (Int j = first; j < first + TILE_ROWS; ++j)
                for (Int d = 0; d < width; d += LINE) fetch(k + at.later[j] + d);
        }
    }

    // to[j][m] = q[m] . k[j], for all keys and up to 16 lines
    void score(const ActivationTiles& q, float* to) const {
        clear_tiles<COUNT>();
        for (Int d = 0; d < width; d += TILE_DEPTH) {
            load_tile<4>(q.data + d / TILE_DEPTH * q.deeper, q.row_bytes);
            add(d);
        }
        store_tiles<COUNT>(to);
    }

  private:
    static constexpr int COUNT = KEYS / TILE_ROWS;

    template <int T = 0>
    void add(Int d) const {
        load_tile<6>(tiles[T].data + d, tiles[T].row_bytes);
        multiply_tiles<T, 6, 4>();
        if constexpr (T + 1 < COUNT) add<T + 1>(d);
    }

    const Int width;
    WeightTiles tiles[COUNT];
};

// A tile of values, laid in pairs.
struct ValueTiles {
    const ValuePairs values;

    // out[m][d] += weights[m] . v[d], for as many lines m as a tile has; weights are [lines, KEYS], out [lines, width]. `full`: those
    // are 16, so tiles that have scores and queries otherwise have the same shape.
    void add(const BFloat16* weights, bool full, float* out) const {
        constexpr Int AT_ONCE = 4 * TILE_ROWS;
        const Int width = values.width;
        Int d = 0;
        if (full)
            for (; d + AT_ONCE <= width; d += AT_ONCE) add_some<0, 4>(weights, d, out + d);
        for (; d < width; d += TILE_ROWS) add_some<5, 1>(weights, d, out + d);
    }

  private:
    template <int SUMS, int COUNT>
    void add_some(const BFloat16* weights, Int d, float* out) const {
        load_sums<SUMS, COUNT>(out);
        for (Int j = 0; j < KEYS; j += TILE_DEPTH) {
            load_tile<7>(weights + j, KEYS * 2);
            multiply<SUMS, COUNT>(values.data + j * values.width + d * 2);
        }
        store_sums<SUMS, COUNT>(out);
    }

    template <int SUMS, int COUNT>
    void multiply(const BFloat16* tile) const {
        constexpr int MINE = COUNT % 2 ? 6 : 4;  // by turns, the last one in 6
        load_tile<MINE>(tile, values.width * 4);
        multiply_tiles<SUMS, 7, MINE>();
        if constexpr (COUNT > 1) multiply<SUMS + 1, COUNT - 1>(tile + 2 * TILE_ROWS);
    }

    template <int SUMS, int COUNT>
    void load_sums(const float* out) const {
        load_tile<SUMS>(out, values.width * 4);
        if constexpr (COUNT > 1) load_sums<SUMS + 1, COUNT - 1>(out + TILE_ROWS);
    }

    template <int SUMS, int COUNT>
    void store_sums(float* out) const {
        store_tile<SUMS>(out, values.width * 4);
        if constexpr (COUNT > 1) store_sums<SUMS + 1, COUNT - 1>(out + TILE_ROWS);
    }
};
#endif
