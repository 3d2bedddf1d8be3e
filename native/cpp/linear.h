// A linear layer's weight, in bf16 or in bitsandbytes' 4 bits, and the activations that it is multiplied with. Knows
// nothing of adapters or models.
#pragma once

#include "code_rows.h"

constexpr Int DIRECT = 16;  // up to so many rows in all, weights become operands in registers, each time anew

// A weight [outputs, inputs], in bf16 at `halves` or else in 4 bits, and a bias that may be null. `number` is the
// layer's place in an adapter's table.
struct Linear {
    const BFloat16* halves;
    Codes codes;
    const BFloat16* bias;
    Int outputs, inputs, number;

    // Where an output's row begins in memory.
    const void* row(Int out) const {
        return halves ? static_cast<const void*>(halves + out * inputs) : codes.data + out * inputs / 2;
    }
    Int row_bytes() const { return halves ? inputs * Int(sizeof(BFloat16)) : inputs / 2; }
    Int stride() const { return padded(inputs, CODE_BLOCK); }  // of its activations as they are multiplied
    bool beside_codes() const { return CODES_IN_OWN_ORDER && !halves; }  // how they lie
};

// Where a thread reads on: at an output of a linear, or nowhere.
struct NextRows {
    const Linear* linear = nullptr;
    Int out = 0;

    const void* data() const { return linear ? linear->row(out) : nullptr; }
};

// Rows [first, stop) of a batch.
struct Range {
    Int first, stop;
    Int count() const { return stop - first; }
};

// A batch's activations in each order in which they will be read.
class Inputs {
  public:
    void fit(Int rows, Int stride, bool plain, bool beside_codes) {
        orders[0] = orders[1] = {nullptr, rows, stride};
        if (plain) rooms[0].fit(rows * stride + PAST), orders[0].data = rooms[0].data();
        if (beside_codes) rooms[1].fit(rows * stride + PAST), orders[1].data = rooms[1].data();
    }

    // Lays all rows [rows, count] out. By every thread of a team; ends when all are through. Threads share no line of
    // memory that is written: each takes whole groups of rows or, where there are few, some inputs of all of them.
    void put(const BFloat16* from, Int count) const {
        const Int rows = orders[0].rows, spans = (orders[0].stride + SPAN - 1) / SPAN;
#pragma omp for
        for (Int unit = 0; unit < (rows + GROUP - 1) / GROUP * spans; ++unit) {
            const Int begin = unit / spans * GROUP, end = std::min(begin + GROUP, rows), first = unit % spans * SPAN;
#if defined(BF16_TILES)
            if (end - begin == TILE_ROWS && first + SPAN <= count) {
                put_squares(begin, from + begin * count + first, count, first);
                continue;
            }
#endif
            for (Int row = begin; row < end; ++row) put_span(row, from + row * count, count, first);
        }
    }

#if defined(BF16_TILES)
    // Lays out what a group has of 16 inputs from `first`: numbers[i] are its rows' i-th, to be rounded. By one thread.
    void put_tile(Int row, Int first, const Vec (&numbers)[TILE_ROWS]) const {
        const Activations &plain = orders[0], &other = orders[1];
        for (Int i = 0; plain.data && i < TILE_ROWS; i += 2) put_pairs(plain, row, first + i, numbers[i], numbers[i + 1]);
        for (Int odd = 0; other.data && odd < 2; ++odd)
            for (Int i = odd; i < TILE_ROWS; i += 4)
                put_pairs(other, row, place_beside_codes(first + i), numbers[i], numbers[i + 2]);
    }
#endif

    const Activations& plain() const { return orders[0]; }
    const Activations& of(const Linear& linear) const { return orders[linear.beside_codes()]; }

  private:
    static constexpr Int SPAN = 2 * CODE_BLOCK;

#if defined(BF16_TILES)
    static void put_pairs(const Activations& x, Int row, Int input, Vec first, Vec second) {
        const __mmask16 there = __mmask16((1 << x.group(row)) - 1);
        _mm512_mask_storeu_epi32(x.at(row, input), there, __m512i(rounded_pairs(first, second)));
    }

    // SPAN numbers of each row of a whole group, from `first` on; rows lie `count` numbers apart.
    void put_squares(Int row, const BFloat16* from, Int count, Int first) const {
        const Activations &plain = orders[0], &other = orders[1];
        for (Int i = 0; plain.data && i < SPAN; i += PER_VECTOR)
            put_square([&](Int r) { return operand(from + r * count + i); }, plain.at(row, first + i));
        for (Int i = 0; other.data && i < SPAN; i += CODE_BLOCK)
            for (Int odd = 0; odd < 2; ++odd)
                put_square([&](Int r) { return beside_codes_of(from + r * count + i, odd); },
                           other.at(row, first + i + odd * PER_VECTOR));
    }
#endif

    // Up to SPAN numbers of a row, from the first on.
    void put_span(Int row, const BFloat16* from, Int count, Int first) const {
        const Activations &plain = orders[0], &other = orders[1];
        const Int past = std::min(first + SPAN, plain.stride) - first, there = std::min(count - first, past);
        if (plain.data) pack<ActivationLayout>(from + first, plain.at(row, first), plain.step(row), there, past);
        if (other.data) pack_beside_codes(from + first, other.at(row, first), other.step(row), there, past);
    }

    Buffer<Number> rooms[2];
    Activations orders[2];
};

// What one thread needs for a block; kept between calls.
struct Scratch {
    Buffer<Number> weights;
    Buffer<float> scales;
    ScaleTable scale_table;
    Buffer<Vec> sums;
    Buffer<float> tile_sums;
};
