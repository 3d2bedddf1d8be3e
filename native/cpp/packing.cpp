// Tensors as a file holds them, rounded to bf16 and put where they are multiplied: A as it is, B transposed. Knows
// nothing of files and adapters.
#include <limits>

#include "common.h"

namespace {

using ::load;

// `count` tensors [rows, columns], one every `step` numbers from `start` on; they go side by side from `to` on, each as
// it is or, if `transposed`, as [columns, rows].
struct Move {
    Int start, step, to, count, rows, columns, transposed;
};

struct Half {
    uint16_t bits;
};

inline BitVec wide(const void* from) {
    HalfVec half;
    memcpy(&half, from, sizeof half);
    return __builtin_convertvector(half, BitVec);
}

// As exact as float is. A half's exponent is put where a float's is, 112 too low; its infinities and what is no number
// are told by theirs.
inline Vec load(const Half* from) {
    const BitVec half = wide(from), magnitude = (half & 0x7FFF) << 13;
    Vec value;
    memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;
    BitVec bits;
    memcpy(&bits, &value, sizeof bits);
    bits |= (magnitude >= 0x7C00u << 13 ? BitVec{} + 0x7F800000u : BitVec{}) | (half & 0x8000) << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounds to bf16, in the upper halves, and keeps the largest magnitude's bits of each lane: infinities are larger than
// all numbers, and what is no number is larger than they are.
struct Rounding {
    BitVec largest{};

    BitVec operator()(Vec value) {
        const BitVec bits = rounded_bits(value), magnitude = bits & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
        return bits;
    }

    float magnitude() const {
        uint32_t found = 0;
        for (int lane = 0; lane < LANES; ++lane) found = std::max<uint32_t>(found, largest[lane]);
        float value;
        memcpy(&value, &found, sizeof value);
        return value == value ? value : std::numeric_limits<float>::infinity();
    }
};

inline HalfVec halves(BitVec bits) { return __builtin_convertvector(bits >> 16, HalfVec); }

template <class Stored>
void convert(const Stored* from, BFloat16* to, Int count, Rounding& rounding) {
    Int i = 0;
    for (; i + LANES <= count; i += LANES) {
        const HalfVec half = halves(rounding(load(from + i)));
        memcpy(to + i, &half, sizeof half);
    }
    if (i == count) return;
    Stored rest[LANES] = {};
    std::copy(from + i, from + count, rest);
    const HalfVec half = halves(rounding(load(rest)));
    memcpy(to + i, &half, (count - i) * sizeof *to);
}

// A line of what is written at a time: the numbers of LINE rows, whose pairs are moved as one.
template <class Stored>
void transpose(const Stored* from, BFloat16* to, Int rows, Int columns, Rounding& rounding) {
    static thread_local Buffer<BFloat16> room;
    room.fit(LINE * columns + LANES);  // a vector is read where a row's last numbers begin
    BitVec pairs[LINE / 2];
    for (Int row = 0; row < rows; row += LINE) {
        const Int high = std::min(LINE, rows - row);
        convert(from + row * columns, room.data(), high * columns, rounding);
        for (Int column = 0; column < columns; column += LANES) {
            const BFloat16* numbers = room.data() + column;
            for (Int i = 0; i < LINE; i += 2) pairs[i / 2] = wide(numbers + i * columns) | wide(numbers + (i + 1) * columns) << 16;
            for (Int k = 0; k < std::min<Int>(LANES, columns - column); ++k) {
                uint32_t line[LINE / 2];
                for (Int i = 0; i < LINE / 2; ++i) line[i] = pairs[i][k];
                memcpy(to + (column + k) * rows + row, line, high * sizeof *to);
            }
        }
    }
}

template <class Stored>
float pack(const Stored* stored, const Move* moves, Int count, BFloat16* to) {
    Rounding rounding;
    for (const Move* move = moves; move < moves + count; ++move) {
        const Int size = move->rows * move->columns;
        for (Int i = 0; i < move->count; ++i) {
            const Stored* from = stored + move->start + i * move->step;
            BFloat16* place = to + move->to + i * size;
            if (move->transposed)
                transpose(from, place, move->rows, move->columns, rounding);
            else
                convert(from, place, size, rounding);
        }
    }
    return rounding.magnitude();
}

}  // namespace

// The largest magnitude of what was packed; infinite where one is, or is no number.
extern "C" float pack_floats(const float* stored, const Move* moves, Int count, BFloat16* to) {
    return pack(stored, moves, count, to);
}
extern "C" float pack_halves(const Half* stored, const Move* moves, Int count, BFloat16* to) {
    return pack(stored, moves, count, to);
}
extern "C" float pack_bf16(const BFloat16* stored, const Move* moves, Int count, BFloat16* to) {
    return pack(stored, moves, count, to);
}
