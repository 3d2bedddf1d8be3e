// y[t] = s * B (A x[t]) for rows of many adapters (SGMV, arXiv 2310.18547): every adapter at its own rank, its bytes
// read once for all its rows. y is floats; rows that no adapter covers are left alone.
#include "common.h"

namespace {

constexpr Int RANKS = 12;     // rows of A that are taken together
constexpr Int OUTPUTS = 256;  // outputs that one thread takes at a time
constexpr Int TAKEN = 32;     // rows of x that share a reading of A or B
constexpr int WIDE = 8;       // vectors of outputs that a single row takes at a time: whole cache lines of B

// One adapter at one linear layer: A [rank, inputs] and B [rank, outputs]. Rank 0 where it does not touch the layer.
struct Part {
    const BFloat16* a;
    const BFloat16* b;
    Int rank;
    double scaling;
};

// Rows [start, stop) belong to the adapter whose parts, one for each layer, are at `parts`.
struct Term {
    Int start;
    Int stop;
    const Part* parts;
};

// Rows [start, stop) of one term, and a range of ranks or outputs.
struct Task {
    Int start, stop, first, last;
    const Part* part;
};

std::vector<Task> tasks(const Term* terms, Int count, Int layer, Int width, Int step, bool of_ranks) {
    std::vector<Task> found;
    for (const Term* term = terms; term < terms + count; ++term) {
        const Part* part = term->parts + layer;
        const Int last = part->rank == 0 ? 0 : of_ranks ? part->rank : width;
        for (Int start = term->start; start < term->stop; start += TAKEN)
            for (Int first = 0; first < last; first += step)
                found.push_back({start, std::min(start + TAKEN, term->stop), first, std::min(first + step, last), part});
    }
    return found;
}

// h[t] = s * A x[t] for the task's ranks.
void shrink(const Task& task, const float* x, Int inputs, float* h, Int h_stride, float* block) {
    const Int rows = task.stop - task.start, ranks = task.last - task.first, stride = padded(inputs);
    const BFloat16* a = task.part->a + task.first * inputs;
    Vec sums[TAKEN * RANKS] = {};
    if (rows <= ROWS && inputs % LANES == 0) {
        multiply(x + task.start * stride, stride, rows, a, inputs, ranks, inputs, sums, RANKS);
    } else {
        for (Int r = 0; r < ranks; ++r) widen(a + r * inputs, block + r * stride, inputs);
        multiply(x + task.start * stride, stride, rows, block, stride, ranks, stride, sums, RANKS);
    }
    for (Int t = 0; t < rows; ++t)
        for (Int r = 0; r < ranks; ++r)
            h[(task.start + t) * h_stride + task.first + r] = total(sums[t * RANKS + r]) * float(task.part->scaling);
}

template <int M, int N>
void expand_tile(const float* h, Int h_stride, const BFloat16* b, Int outputs, Int ranks, float* y) {
    Vec acc[M][N] = {};
    for (Int r = 0; r < ranks; ++r) {
        Vec wide[N];
        for (int n = 0; n < N; ++n) {
            __builtin_prefetch(b + r * outputs + (N + n) * LANES);  // the next tile's: each rank is a row of its own
            wide[n] = load(b + r * outputs + n * LANES);
        }
        for (int m = 0; m < M; ++m)
            for (int n = 0; n < N; ++n) acc[m][n] += h[m * h_stride + r] * wide[n];
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) store(y + m * outputs + n * LANES, acc[m][n]);
}

// y[t] = B h[t] for all rows of the task and N vectors of outputs from `out`.
template <int N>
void expand_vectors(const Task& task, const float* h, Int h_stride, Int outputs, Int out, float* y) {
    const BFloat16* b = task.part->b + out;
    Int t = task.start;
    if constexpr (N <= 2)  // wider ones have no registers for more rows
        for (; t + ROWS <= task.stop; t += ROWS)
            expand_tile<ROWS, N>(h + t * h_stride, h_stride, b, outputs, task.part->rank, y + t * outputs + out);
    for (; t < task.stop; ++t)
        expand_tile<1, N>(h + t * h_stride, h_stride, b, outputs, task.part->rank, y + t * outputs + out);
}

// y[t] = B h[t] for the task's outputs.
void expand(const Task& task, const float* h, Int h_stride, Int outputs, float* y) {
    const Int ranks = task.part->rank;
    Int out = task.first;
    if (task.stop - task.start == 1)
        for (; task.last - out >= WIDE * LANES; out += WIDE * LANES) expand_vectors<WIDE>(task, h, h_stride, outputs, out, y);
    for (; task.last - out >= 2 * LANES; out += 2 * LANES) expand_vectors<2>(task, h, h_stride, outputs, out, y);
    for (; task.last - out >= LANES; out += LANES) expand_vectors<1>(task, h, h_stride, outputs, out, y);
    for (; out < task.last; ++out)
        for (Int t = task.start; t < task.stop; ++t) {
            float value = 0;
            for (Int r = 0; r < ranks; ++r) value += h[t * h_stride + r] * float(task.part->b[r * outputs + out]);
            y[t * outputs + out] = value;
        }
}

}  // namespace

extern "C" void low_rank_bf16(const BFloat16* x, float* y, const Term* terms, Int count, Int layer, Int rows,
                              Int inputs, Int outputs) {
    const std::vector<Task> shrinks = tasks(terms, count, layer, inputs, RANKS, true);
    if (shrinks.empty()) return;
    const std::vector<Task> expands = tasks(terms, count, layer, outputs, OUTPUTS, false);
    static thread_local std::vector<float> kept_x, kept_h;
    Int widest = 0;
    for (const Task& task : shrinks) widest = std::max(widest, task.part->rank);
    const Int stride = padded(inputs);
    kept_x.resize(rows * stride), kept_h.resize(rows * widest);
    float *wide = kept_x.data(), *h = kept_h.data();
#pragma omp parallel
    {
        static thread_local std::vector<float> kept_block;
        kept_block.resize(RANKS * stride);
        float* block = kept_block.data();
#pragma omp for
        for (Int row = 0; row < rows; ++row) widen(x + row * inputs, wide + row * stride, inputs);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < shrinks.size(); ++i) shrink(shrinks[i], wide, inputs, h, widest, block);
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < expands.size(); ++i) expand(expands[i], h, widest, outputs, y);
    }
}
