// Tiles, as AMX multiplies them: 16 rows of weights, 32 numbers of each, with as many numbers of up to 16 rows of
// activations. Where a processor has none, plain loops stand for the instructions and add in the same order. Knows
// nothing of models.
#pragma once

#include "operand.h"
#include "transpose.h"

#if defined(BF16_TILES)
constexpr Int TILE_ROWS = 16;  // rows of a tile
constexpr Int TILE_DEPTH = 32;  // bf16 numbers in a row
constexpr Int TILE_NUMBERS = TILE_ROWS * TILE_DEPTH;  // in a whole tile of them
constexpr Int TILE_SUMS = TILE_ROWS * TILE_ROWS;  // sums in a tile
constexpr Int READ_PAST = 2 * TILE_ROWS;  // numbers behind the last activation that a tile's load may touch

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>

// For as long as it lives, its thread has the eight tiles. What lies in columns that nobody needs is multiplied all the
// same, which takes power and so time: tiles have no more rows and columns than are wanted.
class TileUse {
  public:
    // For products with so many rows of activations, at least one: these, and sums, are in tiles 0 to 5, weights in 6 and 7.
    explicit TileUse(Int rows) {
        Shape all;
        for (int t = 0; t < 6; ++t) all.set(t, TILE_ROWS, std::min(rows, TILE_ROWS));
        all.set(6, TILE_ROWS, TILE_ROWS), all.set(7, TILE_ROWS, TILE_ROWS);
        all.load();
    }

    // For attention of so many lines: scores in tiles 0 to 3 are keys in 6 times queries in 4; outputs in 5 are weights in 7
    // times values in 6. With 16 lines all are alike, and 0 to 3 may have outputs, 4 values.
    static TileUse of_attention(Int lines) {
        const Int some = std::min(lines, TILE_ROWS);
        Shape all;
        for (int t = 0; t < 5; ++t) all.set(t, TILE_ROWS, some);
        all.set(5, some, TILE_ROWS), all.set(7, some, TILE_ROWS);
        all.set(6, TILE_ROWS, TILE_ROWS);
        return TileUse(all);
    }

    TileUse(const TileUse&) = delete;
    ~TileUse() { asm volatile("tilerelease"); }

  private:
    struct alignas(64) Shape {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};

        // Columns are of one float or of a pair of bf16 numbers.
        void set(int tile, Int count, Int columns) { rows[tile] = uint8_t(count), bytes[tile] = uint16_t(4 * columns); }
        void load() const { asm volatile("ldtilecfg %0" ::"m"(*this)); }
    };

    explicit TileUse(const Shape& all) { all.load(); }
};

template <int T>
inline void clear_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

// A tile's rows, each so many bytes from the last.
template <int T>
inline void load_tile(const void* from, Int bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(bytes), "i"(T) : "memory");
}

template <int T>
inline void store_tile(float* to, Int bytes = LINE_BYTES) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(bytes), "i"(T) : "memory");
}

// sums[n][m] += w[n] . x[m], where x lies in pairs: [pair][m][2].
template <int SUMS, int W, int X>
inline void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(X), "i"(W), "i"(SUMS));
}

// Asks the operating system, once for a process, to keep tiles when it switches threads.
inline bool tiles_allowed() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#else
struct TileUse {
    explicit TileUse(Int) {}
    ~TileUse() {}
    static TileUse of_attention(Int) { return TileUse(0); }
};

inline float (&tile_of(int t))[TILE_SUMS] {
    static thread_local float tiles[8][TILE_SUMS];
    return tiles[t];
}

template <int T>
inline void clear_tile() {
    std::fill(tile_of(T), tile_of(T) + TILE_SUMS, 0.0f);
}

template <int T>
inline void load_tile(const void* from, Int bytes) {
    for (Int i = 0; i < TILE_ROWS; ++i) memcpy(tile_of(T) + i * TILE_ROWS, static_cast<const char*>(from) + i * bytes, LINE_BYTES);
}

template <int T>
inline void store_tile(float* to, Int bytes = LINE_BYTES) {
    for (Int i = 0; i < TILE_ROWS; ++i) memcpy(reinterpret_cast<char*>(to) + i * bytes, tile_of(T) + i * TILE_ROWS, LINE_BYTES);
}

template <int SUMS, int W, int X>
inline void multiply_tiles() {
    BFloat16 w[TILE_ROWS][TILE_ROWS][2], x[TILE_ROWS][TILE_ROWS][2];
    memcpy(w, tile_of(W), sizeof w), memcpy(x, tile_of(X), sizeof x);
    for (Int n = 0; n < TILE_ROWS; ++n)
        for (Int m = 0; m < TILE_ROWS; ++m) {
            float even = 0, odd = 0;
            for (Int pair = 0; pair < TILE_ROWS; ++pair) {
                even += float(w[n][pair][0]) * float(x[pair][m][0]);
                odd += float(w[n][pair][1]) * float(x[pair][m][1]);
            }
            tile_of(SUMS)[n * TILE_ROWS + m] += even + odd;
        }
}

inline bool tiles_allowed() { return true; }
#endif

// How tiles of weights and of activations lie. Steps are in numbers, rows in bytes.
struct WeightTiles {
    const BFloat16* data;
    Int row_bytes, step, deeper;  // from one row to the next; from one tile to the next; to the tile of the next inputs
};

struct ActivationTiles {
    const BFloat16* data;
    Int row_bytes, deeper;
};

template <int N, int FROM = 0>
inline void clear_tiles() {
    clear_tile<FROM>();
    if constexpr (FROM + 1 < N) clear_tiles<N, FROM + 1>();
}

template <int N, int FROM = 0>
inline void store_tiles(float* to) {
    store_tile<FROM>(to + FROM * TILE_SUMS);
    if constexpr (FROM + 1 < N) store_tiles<N, FROM + 1>(to);
}

// Tile w's products with the activations in tiles 4 and 5; sums are in tiles below 4, weights in 6 and 7 by turns.
template <int W, int U, int FROM = 0, class Beside>
inline void add_tiles(const WeightTiles& w, const BFloat16* at, Beside beside) {
    constexpr int MINE = 6 + FROM % 2;
    beside();
    load_tile<MINE>(at, w.row_bytes);
    multiply_tiles<FROM * U, MINE, 4>();
    if constexpr (U == 2) multiply_tiles<FROM * U + 1, MINE, 5>();
    if constexpr (FROM + 1 < W) add_tiles<W, U, FROM + 1>(w, at + w.step, beside);
}

// The first W * U tiles += W tiles of w . U of x over inputs [from, to) of x, which w begins with; `beside` is called for
// each tile of w. The order of additions of one sum does not depend on what else is in a tile, so a request's
// result does not depend on its neighbours.
template <int W, int U, class Beside>
inline void add_tiles(const WeightTiles& w, const ActivationTiles (&x)[U], Int from, Int to, Beside beside) {
    static_assert(W * U <= 4);
    // A tile is stored in vain now and then: where none has been for 0.6 us, the processor takes 0.3 us longer over the next
    // (Xeon). Few rows wait for memory meanwhile.
    constexpr Int STORE_EVERY = 8;
    alignas(LINE_BYTES) float unread[TILE_SUMS];
    const BFloat16* at = w.data;
    for (Int k = from / TILE_DEPTH; k < to / TILE_DEPTH; ++k, at += w.deeper) {
        if (U == 2 && k % STORE_EVERY == STORE_EVERY - 1) store_tile<4>(unread);
        load_tile<4>(x[0].data + k * x[0].deeper, x[0].row_bytes);
        if constexpr (U == 2) load_tile<5>(x[1].data + k * x[1].deeper, x[1].row_bytes);
        add_tiles<W, U>(w, at, beside);
    }
}

template <int W, int U>
inline void add_tiles(const WeightTiles& w, const ActivationTiles (&x)[U], Int from, Int to) {
    add_tiles<W, U>(w, x, from, to, [] {});
}

// y[m][n] = sums[n][m], for the first `rows` m.
inline void put_sums(const float* sums, Int rows, float* y, Int stride) {
    constexpr Int FEW = 4;
    if (rows <= FEW) {
        for (Int m = 0; m < rows; ++m)
            for (Int n = 0; n < TILE_ROWS; ++n) y[m * stride + n] = sums[n * TILE_ROWS + m];
        return;
    }
    Vec all[TILE_ROWS];
    for (Int n = 0; n < TILE_ROWS; ++n) all[n] = load(sums + n * TILE_ROWS);
    transpose(all);
    for (Int m = 0; m < rows; ++m) store(y + m * stride, all[m]);
}
#else
// In other forms nobody needs tiles.
struct TileUse {
    explicit TileUse(Int) {}
    ~TileUse() {}
};

inline bool tiles_allowed() { return true; }
#endif
