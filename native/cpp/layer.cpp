// A decoder layer as Llama has it, whole: one team of threads goes through all of it, and what shares an input is
// multiplied together. Rounds where transformers' own modules round; low-rank terms are rounded with their products.
//
//   a = x + O(attend(rotate(norm(Q n)), rotate(norm(K n)), V n)),  n = norm(x)
//   y = a + D(silu(G m) * U m),                                    m = norm(a)
#include "attention.h"
#include "linear_input.h"
#include "pointwise.h"
#include "product.h"

namespace {

struct Norm {
    const BFloat16* weight;  // null for none
    float epsilon;
};

struct Rotation {  // of each token's heads: [tokens, width]
    const BFloat16* cos;
    const BFloat16* sin;
};

struct DecoderLayer {
    Linear q, k, v, o, gate, up, down;
    Norm before_attention, before_mlp, of_queries, of_keys;
    Cache cache;
};

// Buffers that the calling thread keeps between calls; the whole team reads and writes them.
struct CallBuffers {
    LinearInput attention, out, mlp, down;
    Buffer<BFloat16> q, k, v, attended, normed, gated;
    std::vector<AttentionTask> tasks;
    TaskSharing attention_tasks;
};

struct ThreadState {  // buffers that each thread keeps for itself
    Scratch scratch[2];
    AttentionScratch attention;
    Buffer<Number> block;
};

class LayerPass {
  public:
    // `after`: the layer that follows, or null.
    LayerPass(const DecoderLayer& layer, const DecoderLayer* after, const Batch& batch, const Terms& terms, const Rotation& rotation,
              const BFloat16* x, BFloat16* y, CallBuffers& buffers)
        : layer(layer), after(after), batch(batch), terms(terms), rotation(rotation), x(x), y(y), rows(batch.tokens), buffers(buffers) {
        buffers.attention.fit(rows, terms, {&layer.q, &layer.k, &layer.v});
        buffers.out.fit(rows, terms, {&layer.o});
        buffers.mlp.fit(rows, terms, {&layer.gate, &layer.up});
        buffers.down.fit(rows, terms, {&layer.down});
        buffers.q.fit(rows * layer.q.outputs), buffers.k.fit(rows * layer.k.outputs);
        buffers.v.fit(rows * layer.v.outputs), buffers.attended.fit(rows * layer.o.inputs);
        buffers.normed.fit(rows * layer.q.inputs);
        if (!gated_in_tiles()) buffers.gated.fit(rows * layer.gate.outputs);
        buffers.tasks.clear();
        append_tasks(batch, layer.cache, omp_get_max_threads(), buffers.tasks);
        buffers.attention_tasks.set(buffers.tasks.size());
        const Linear* projections[] = {&layer.q, &layer.k, &layer.v};
        project_width = width_for(layer.q, layer.q.outputs + 2 * layer.k.outputs);
        for (int i = 0; i < 3; ++i) starts[i + 1] = starts[i] + blocks_of(projections[i]->outputs, project_width);
        buffers.attention.product_tasks.set(Parts(layer.q, rows).count() * starts[3]);
        for (auto [linear, input] : {std::pair{&layer.o, &buffers.out}, {&layer.gate, &buffers.mlp}, {&layer.down, &buffers.down}})
            input->product_tasks.set(Parts(*linear, rows).count() * blocks_of(linear->outputs, width_for(*linear)));
    }

    // Every thread of the team calls this once.
    void run(ThreadState& thread) {
        normalise(x, layer.before_attention, buffers.attention);
        project(thread);
        attend_all(thread);
        const TileUse tiles(rows);
        buffers.out.x.put(buffers.attended.data(), layer.o.inputs);
        shrink(buffers.out, thread);
        add_product(layer.o, buffers.out, x, begin(layer.gate, buffers.mlp.product_tasks.first()), thread);
        normalise(y, layer.before_mlp, buffers.mlp);
        shrink(buffers.mlp, thread);
        gate_and_up(thread);
        if (!gated_in_tiles()) buffers.down.x.put(buffers.gated.data(), layer.down.inputs);
        shrink(buffers.down, thread);
        add_product(layer.down, buffers.down, y,
                    after ? begin(*after, buffers.attention.product_tasks.first()) : NextRows{}, thread);
    }

  private:
    // Each of these ends when all threads are through with it.
    void normalise(const BFloat16* from, const Norm& norm, LinearInput& input) {
        const Int width = layer.q.inputs;
#pragma omp for
        for (Int row = 0; row < rows; ++row) {
            rms_norm(from + row * width, norm.weight, buffers.normed.data() + row * width, width, norm.epsilon);
        }
        input.x.put(buffers.normed.data(), width);
    }

    void shrink(LinearInput& input, ThreadState& thread) {
        if (input.shrinks.empty()) return;
        const Shrink* all = input.shrinks.data();
        Shrink::Ahead ahead(all + input.shrink_tasks.start(), all + input.shrink_tasks.stop());
        input.shrink_tasks.run([&](Int task, Int) { all[task].run(thread.block, ahead); });
    }

    // Which of queries, keys and values a task of theirs is, and its first output.
    std::pair<int, Int> projection(Int task) const {
        const Int block = task % starts[3];
        const int which = block >= starts[2] ? 2 : block >= starts[1] ? 1 : 0;
        return {which, (block - starts[which]) * project_width};
    }

    void project(ThreadState& thread) {
        const TileUse tiles(rows);
        shrink(buffers.attention, thread);
        const Linear* linears[] = {&layer.q, &layer.k, &layer.v};
        BFloat16* results[] = {buffers.q.data(), buffers.k.data(), buffers.v.data()};
        const NextRows last = begin(layer.o, buffers.out.product_tasks.first());
        buffers.attention.product_tasks.run([&](Int task, Int following) {
            const auto [which, out] = projection(task);
            const Linear& linear = *linears[which];
            const Int outs = std::min(project_width, linear.outputs - out);
            const Range range = Parts(layer.q, rows)[task / starts[3]];
            BFloat16* to = results[which] + out;
            Block block(linear, out, outs, range, following == NONE ? last : begin(layer, following), thread.scratch[0]);
            products(block, linear, buffers.attention, which, range, out, outs, [&](Int row, Int count, const float* sums) {
                for (Int m = 0; m < count; ++m) round_row(sums + m * BLOCK, to + (row + m) * linear.outputs, outs);
            });
        });
    }

    void attend_all(ThreadState& thread) {
        const Cache& cache = layer.cache;
        const Int width = cache.width;
        const Rows query{buffers.q.data(), cache.heads * width, width};
        const Rows key{buffers.k.data(), cache.kv_heads * width, width}, value{buffers.v.data(), cache.kv_heads * width, width};
#pragma omp for
        for (Int row = 0; row < rows; ++row) {
            rotate_heads(buffers.q.data() + row * query.token, cache.heads, layer.of_queries, row);
            rotate_heads(buffers.k.data() + row * key.token, cache.kv_heads, layer.of_keys, row);
            write_slot(batch, row, key, value, cache);
        }
        buffers.attention_tasks.run(
            [&](Int task, Int) { attend(buffers.tasks, task, batch, query, cache, thread.attention, buffers.attended.data()); });
    }

    void rotate_heads(BFloat16* heads, Int count, const Norm& norm, Int row) {
        const Int width = layer.cache.width;
        for (BFloat16* head = heads; head < heads + count * width; head += width) {
            if (norm.weight) rms_norm(head, norm.weight, head, width, norm.epsilon);
            rotate(head, rotation.cos + row * width, rotation.sin + row * width, width);
        }
    }

    void gate_and_up(ThreadState& thread) {
        const Int outputs = layer.gate.outputs, width = width_for(layer.gate), blocks = blocks_of(outputs, width);
        const NextRows last = begin(layer.down, buffers.down.product_tasks.first());
        buffers.mlp.product_tasks.run([&](Int task, Int following) {
            const Int out = task % blocks * width, outs = std::min(width, outputs - out);
            const Range range = Parts(layer.gate, rows)[task / blocks];
            Block gate(layer.gate, out, outs, range, NextRows{&layer.up, out}, thread.scratch[0]);
            Block up(layer.up, out, outs, range, following == NONE ? last : begin(layer.gate, following), thread.scratch[1]);
            multiply(gate, buffers.mlp, 0, range, out, outs), multiply(up, buffers.mlp, 1, range, out, outs);
#if defined(BF16_TILES)
            if (gated_in_tiles()) return put_gated(gate, up, range, out, outs);
#endif
            for (Int row = range.first, count; row < range.stop; row += count) {
                float gates[ROWS_AT_ONCE * BLOCK], ups[ROWS_AT_ONCE * BLOCK];
                count = group_products(gate, layer.gate, buffers.mlp, 0, row, out, outs, gates);
                group_products(up, layer.up, buffers.mlp, 1, row, out, outs, ups);
                for (Int m = 0; m < count; ++m) {
                    BFloat16 gate[BLOCK], other[BLOCK];
                    round_row(gates + m * BLOCK, gate, outs), round_row(ups + m * BLOCK, other, outs);
                    silu_product(gate, other, buffers.gated.data() + (row + m) * outputs + out, outs);
                }
            }
        });
    }

    // Whether gates times ups are laid out at once as what the next linear reads: they come in the order of its tiles. Biases are
    // added row by row.
    bool gated_in_tiles() const {
        return buffers.mlp.terms[0].tiled() && !layer.gate.bias && !layer.up.bias && layer.down.inputs % CODE_BLOCK == 0;
    }

#if defined(BF16_TILES)
    void put_gated(Block& gate, Block& up, const Range& range, Int out, Int outs) const {
        for (Int row = range.first; row < range.stop; row += GROUP)
            for (Int n = 0; n < outs; n += TILE_ROWS) {
                const float *gates = gate.sums(row, n / TILE_ROWS), *ups = up.sums(row, n / TILE_ROWS);
                Vec gated[TILE_ROWS];
                for (Int i = 0; i < TILE_ROWS; ++i)
                    gated[i] = silu_product(rounded(load(gates + i * LANES)), rounded(load(ups + i * LANES)));
                buffers.down.x.put_tile(row, out + n, gated);
            }
    }
#endif

    // y = before + W x. `last`: what the thread reads when it has finished its share.
    void add_product(const Linear& linear, LinearInput& input, const BFloat16* before, const NextRows last, ThreadState& thread) {
        const Int outputs = linear.outputs, width = width_for(linear), blocks = blocks_of(outputs, width);
        input.product_tasks.run([&](Int task, Int following) {
            const Int out = task % blocks * width, outs = std::min(width, outputs - out);
            const Range range = Parts(linear, rows)[task / blocks];
            Block block(linear, out, outs, range, following == NONE ? last : begin(linear, following), thread.scratch[0]);
            products(block, linear, input, 0, range, out, outs, [&](Int row, Int count, const float* sums) {
                for (Int m = 0; m < count; ++m) {
                    const Int at = (row + m) * outputs + out;
                    add_row(before + at, sums + m * BLOCK, y + at, outs);
                }
            });
        });
    }

    Int width_for(const Linear& linear) const { return width_for(linear, linear.outputs); }
    Int width_for(const Linear& linear, Int outputs) const { return block_width(linear, outputs, rows, omp_get_max_threads()); }
    static Int blocks_of(Int outputs, Int width) { return (outputs + width - 1) / width; }

    // Where a task begins to read that has all outputs of a linear, or the projections of a layer like this one.
    NextRows begin(const Linear& linear, Int task) const {
        const Int width = width_for(linear);
        return task == NONE ? NextRows{} : NextRows{&linear, task % blocks_of(linear.outputs, width) * width};
    }
    NextRows begin(const DecoderLayer& like, Int task) const {
        if (task == NONE) return {};
        const auto [which, out] = projection(task);
        return {which == 0 ? &like.q : which == 1 ? &like.k : &like.v, out};
    }

    // Sums of W x + s B (A x), times the gain, plus bias, for outputs [out, out + outs) of some rows, a group at a time.
    template <class Emit>
    void products(Block& block, const Linear& linear, LinearInput& input, int which, const Range& range, Int out, Int outs, Emit emit) {
        multiply(block, input, which, range, out, outs);
        for (Int row = range.first; row < range.stop; row += ROWS_AT_ONCE) {
            float sums[ROWS_AT_ONCE * BLOCK];
            const Int count = group_products(block, linear, input, which, row, out, outs, sums);
            emit(row, count, sums);
        }
    }

    // What is multiplied of all rows before any is asked for, with the adapters' terms that join it in tiles.
    void multiply(Block& block, const LinearInput& input, int which, const Range& range, Int out, Int outs) {
        const LayerTerms& changes = input.terms[which];
        if (changes.h_stride) changes.fetch_expansion(terms, range.first, range.count(), out, outs);
        block.multiply_all(input.x);
#if defined(BF16_TILES)
        if (changes.h_stride && changes.tiled())
            changes.apply_to_tiles(terms, range.first, range.count(), out, outs, block.spare(),
                                   [&](Int row, Int n) { return block.sums(row, n); });
#endif
    }

    // Then one group; returns its rows.
    Int group_products(Block& block, const Linear& linear, const LinearInput& input, int which, Int row, Int out, Int outs,
                       float* sums) {
        const LayerTerms& changes = input.terms[which];
        const Int count = block.products(input.x, row, sums);
        if (changes.h_stride && !changes.tiled()) changes.apply_to_rows(terms, row, count, out, outs, sums, BLOCK);
        if (linear.bias)
            for (Int m = 0; m < count; ++m)
                for (Int n = 0; n < outs; ++n) sums[m * BLOCK + n] += linear.bias[out + n];
        return count;
    }

    static void add_row(const BFloat16* before, const float* sums, BFloat16* to, Int count) {
        Int i = 0;
        for (; i + LANES <= count; i += LANES) store(to + i, load(before + i) + rounded(load(sums + i)));
        for (; i < count; ++i) to[i] = BFloat16::of(float(before[i]) + rounded(sums[i]));
    }

    static constexpr Int NONE = TaskSharing::NONE;

    const DecoderLayer& layer;
    const DecoderLayer* after;
    const Batch& batch;
    const Terms& terms;
    const Rotation rotation;
    const BFloat16* x;
    BFloat16* y;
    const Int rows;
    CallBuffers& buffers;
    Int project_width, starts[4] = {};  // the projections' blocks: their width, and where each projection's begin
};

}  // namespace

// y [tokens, hidden] of x, through one layer after the other. `between` has room for as much; none is another.
extern "C" void decoder_layers_bf16(const DecoderLayer* const* layers, Int layer_count, const Batch* batch, const Term* data, Int count,
                                    const BFloat16* cos, const BFloat16* sin, const BFloat16* x, BFloat16* between, BFloat16* y) {
    static thread_local CallBuffers buffers;
    const Terms terms{data, count};
    for (Int left = layer_count; left; --left, ++layers) {
        BFloat16* to = left % 2 ? y : between;
        LayerPass pass(**layers, left > 1 ? layers[1] : nullptr, *batch, terms, {cos, sin}, x, to, buffers);
#pragma omp parallel
        {
            static thread_local ThreadState thread;
            pass.run(thread);
        }
        x = to;
    }
}
