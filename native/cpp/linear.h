// A linear layer's weight, in bf16 or in bitsandbytes' 4 bits, and the activations that it is multiplied with. Knows
// nothing of adapters or models.
#pragma once

#include "code_rows.h"

constexpr Int DIRECT = 16;   // up to so many rows in all, weights become operands in registers, each time anew

// A weight [outputs, inputs], in bf16 at `halves` or else in 4 bits, and a bias that may be null. `number` is the
// layer's place in an adapter's table.
struct Linear {
    const BFloat16* halves;
    Codes codes;
    const BFloat16* bias;
    Int outputs, inputs, number;

    Int stride() const { return padded(inputs, SCALED); }  // of its activations as they are multiplied
    bool beside_codes() const { return CODES_IN_OWN_ORDER && !halves; }  // how they lie
};

// A batch's activations in each order in which they will be read.
class Inputs {
  public:
    void fit(Int rows, Int stride, bool plain, bool beside_codes) {
        orders[0] = orders[1] = {nullptr, rows, stride};
        if (plain) rooms[0].fit(rows * stride + PAST), orders[0].data = rooms[0].data();
        if (beside_codes) rooms[1].fit(rows * stride + PAST), orders[1].data = rooms[1].data();
    }

    void put(Int row, const BFloat16* from, Int count) const {
        const Activations &plain = orders[0], &other = orders[1];
        if (plain.data) plain.put(row, from, count);
        if (other.data) lay_beside_codes(from, other.at(row), other.step(row), count, other.stride);
    }

    const Activations& plain() const { return orders[0]; }
    const Activations& of(const Linear& linear) const { return orders[linear.beside_codes()]; }

  private:
    Buffer<Number> rooms[2];
    Activations orders[2];
};

// What one thread needs for a block; kept between calls.
struct Scratch {
    Buffer<Number> weights;
    Buffer<float> scales;
    ScaleTable scale_table;
    Buffer<Vec> sums;
};
