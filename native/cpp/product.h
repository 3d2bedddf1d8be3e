// The product of a linear layer's weight with a batch's activations: how it is divided, and each part of it. Knows nothing
// of adapters or models.
#pragma once

#if defined(BF16_TILES)
#include "tile_block.h"
#else
#include "block.h"
#endif

constexpr Int CACHED = 512 * 1024;  // bytes of activations that stay in the second-level cache beside a block

// Rows of activations that are multiplied with one block after the other: so many as stay in the second-level cache.
inline Int rows_at_once(const Linear& linear) {
    const Int fitting = CACHED / (linear.stride() * Int(sizeof(Number))) / ROWS_AT_ONCE * ROWS_AT_ONCE;
    return std::max<Int>(4 * GROUP, fitting);
}

// Outputs that each of `threads` takes at a time, of linears that are multiplied together and have so many: small enough
// that all have something to do until the end.
inline Int block_width(const Linear& linear, Int outputs, Int rows, Int threads) {
    const Int even = outputs / (threads * 6), fitting = block_bytes(rows) / linear.row_bytes();
    return std::max<Int>(16, std::min({BLOCK, even, fitting}) / 16 * 16);
}
