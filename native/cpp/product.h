// The product of a linear layer's weight with a batch's activations: how it is divided, and each part of it. Knows nothing
// of adapters or models.
#pragma once

#if defined(BF16_TILES)
#include "tile_block.h"
#else
#include "block.h"
#endif

constexpr Int CACHED = 512 * 1024;  // bytes of activations that stay in the second-level cache beside a block

// A batch's rows, in parts: as many are multiplied with one block after the other as stay in that cache, or as gain from
// one reading of a weight.
class Parts {
  public:
    Parts(const Linear& linear, Int rows) : rows(rows), size(rows_at_once(linear)) {}

    Int count() const { return (rows + size - 1) / size; }
    Range operator[](Int number) const { return {number * size, std::min(number * size + size, rows)}; }

  private:
    static Int rows_at_once(const Linear& linear) {
        const Int fitting = CACHED / (linear.stride() * Int(sizeof(Number))) / ROWS_AT_ONCE * ROWS_AT_ONCE;
        return std::max(LEAST_ROWS, fitting);
    }

    Int rows, size;
};

// Outputs that each of `threads` takes at a time, of linears that are multiplied together and have so many: small enough
// that all have something to do until the end.
inline Int block_width(const Linear& linear, Int outputs, Int rows, Int threads) {
    return std::max<Int>(16, std::min(widest(linear, rows), outputs / (threads * 6)) / 16 * 16);
}
