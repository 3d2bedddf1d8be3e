// The activations of a batch, as a product reads them. Knows nothing of models.
#pragma once

#include "multiply.h"
#include "tiles.h"

#if defined(BF16_TILES)
constexpr Int GROUP = TILE_ROWS;  // rows of activations that lie together
constexpr Int ROWS_AT_ONCE = 2 * TILE_ROWS;  // and that are multiplied with one reading of the weights
constexpr Int UNIT = 2;  // numbers of a row that lie together: the first pair of each row, then the next

// A vector's pairs, each `step` numbers behind the last.
struct InterleavedPairs {
    static Number* put(Operand vector, Number* to, Int step) {
        uint32_t pairs[TILE_ROWS];
        memcpy(pairs, &vector, sizeof pairs);
        for (uint32_t pair : pairs) memcpy(to, &pair, sizeof pair), to += step;
        return to;
    }
};
using ActivationLayout = InterleavedPairs;
constexpr Int PAST = READ_PAST;
#else
constexpr Int GROUP = 8;
constexpr Int ROWS_AT_ONCE = GROUP;
constexpr Int UNIT = PER_VECTOR;
using ActivationLayout = Strided;
constexpr Int PAST = 0;
#endif

// In groups of GROUP rows, and the rest. `stride` is of one row, its zeros at the end included; there is room for PAST
// numbers behind the last.
struct Activations {
    Number* data;
    Int rows, stride;

    Int group(Int row) const { return std::min(GROUP, rows - row / GROUP * GROUP); }
    Int step(Int row) const { return group(row) * UNIT; }
    // Of an input that begins a unit.
    Number* at(Int row, Int input = 0) const {
        return data + row / GROUP * GROUP * stride + row % GROUP * UNIT + input / UNIT * step(row);
    }
    void put(Int row, const BFloat16* from, Int count) const { pack<ActivationLayout>(from, at(row), step(row), count, stride); }
};

#if defined(BF16_TILES)
// A vector of each of 16 rows, as they lie in a group: the first pair of all rows, then the next.
template <class Take>
inline void put_square(Take vector_of, Number* to) {
    Vec rows[TILE_ROWS];
    for (Int r = 0; r < TILE_ROWS; ++r) rows[r] = Vec(vector_of(r));
    transpose(rows);
    for (Int pair = 0; pair < TILE_ROWS; ++pair) memcpy(to + pair * PER_VECTOR, rows + pair, sizeof(Vec));
}

// As they are loaded, from a row to the end of its group.
inline ActivationTiles tiles_of(const Activations& x, Int row) {
    const Int step = x.step(row);
    return {x.at(row), step * Int(sizeof(Number)), step * TILE_DEPTH / UNIT};
}
#endif
