// A decoder layer as Llama has it, whole: one team of threads goes through all of it, and what shares an input is
// multiplied together. Rounds where transformers' own modules round; low-rank terms are rounded with their products.
//
//   a = x + O(attend(rotate(norm(Q n)), rotate(norm(K n)), V n)),  n = norm(x)
//   y = a + D(silu(G m) * U m),                                    m = norm(a)
#include "attention.h"
#include "deal.h"
#include "low_rank.h"
#include "pointwise.h"
#include "product.h"

namespace {

struct Norm {
    const BFloat16* weight;  // null for none
    float epsilon;
};

struct Turn {  // of each token's heads: [tokens, width]
    const BFloat16* cos;
    const BFloat16* sin;
};

struct DecoderLayer {
    Linear q, k, v, o, gate, up, down;
    Norm before_attention, before_mlp, of_queries, of_keys;
    Cache cache;
};

// Activations of all rows as they are multiplied, and what the adapters make of them at up to three linears.
struct Wide {
    Inputs x;
    Buffer<float> h[3], plus[3];
    Shrinking terms[3];
    std::vector<Shrink> shrinks;
    Deal shrinking, multiplying;

    // Makes room for the input of `linears`, which share it, and lists what adapters shrink. Where every thread has an
    // adapter's few rows to itself, it expands them at once.
    void fit(Int rows, const Terms& adapters, std::initializer_list<const Linear*> linears) {
        const bool at_once = rows <= DIRECT && adapters.count >= omp_get_max_threads();
        const auto beside_codes = [](const Linear* linear) { return linear->beside_codes(); };
        const bool some = std::any_of(linears.begin(), linears.end(), beside_codes);
        const bool all = some && std::all_of(linears.begin(), linears.end(), beside_codes);
        x.fit(rows, (*linears.begin())->stride(), adapters.count || !all, some);
        shrinks.clear();
        Int i = 0;
        for (const Linear* linear : linears) {
            const Int h_stride = adapters.widest(linear->number);
            h[i].fit(rows * h_stride);
            if (at_once && h_stride) plus[i].fit(rows * linear->outputs);
            terms[i] = {linear->number, linear->inputs, linear->outputs, h[i].data(), h_stride,
                        at_once && h_stride ? plus[i].data() : nullptr};
            terms[i].append(adapters, x.plain(), shrinks);
            ++i;
        }
        shrinking.set(shrinks.size());
    }
};

// Kept between calls by the thread that calls; the team reads and writes them.
struct Room {
    Wide attention, out, mlp, down;
    Buffer<BFloat16> q, k, v, attended, normed, gated;
    std::vector<AttentionTask> tasks;
    Deal attending;
};

struct Own {  // what each thread keeps
    Scratch scratch[2];
    AttentionScratch attention;
    Buffer<Number> block;
};

class Pass {
  public:
    Pass(const DecoderLayer& layer, const Batch& batch, const Terms& terms, const Turn& turn, const BFloat16* x, BFloat16* y,
         Room& room)
        : layer(layer), batch(batch), terms(terms), turn(turn), x(x), y(y), rows(batch.tokens), room(room) {
        room.attention.fit(rows, terms, {&layer.q, &layer.k, &layer.v});
        room.out.fit(rows, terms, {&layer.o});
        room.mlp.fit(rows, terms, {&layer.gate, &layer.up});
        room.down.fit(rows, terms, {&layer.down});
        room.q.fit(rows * layer.q.outputs), room.k.fit(rows * layer.k.outputs);
        room.v.fit(rows * layer.v.outputs), room.attended.fit(rows * layer.o.inputs);
        room.normed.fit(rows * layer.q.inputs), room.gated.fit(rows * layer.gate.outputs);
        room.tasks.clear();
        append_tasks(batch, layer.cache, omp_get_max_threads(), room.tasks);
        room.attending.set(room.tasks.size());
        const Linear* projections[] = {&layer.q, &layer.k, &layer.v};
        project_width = width_for(layer.q.outputs + 2 * layer.k.outputs);
        for (int i = 0; i < 3; ++i) starts[i + 1] = starts[i] + blocks_of(projections[i]->outputs, project_width);
        room.attention.multiplying.set(parts_of(layer.q) * starts[3]);
        for (auto [linear, wide] : {std::pair{&layer.o, &room.out}, {&layer.gate, &room.mlp}, {&layer.down, &room.down}})
            wide->multiplying.set(parts_of(*linear) * blocks_of(linear->outputs, width_for(linear->outputs)));
    }

    // Every thread of the team calls this once.
    void run(Own& own) {
        normalise(x, layer.before_attention, room.attention);
        shrink(room.attention, own);
        project(own);
        attend_all(own);
        room.out.x.put(room.attended.data(), layer.o.inputs);
        shrink(room.out, own);
        add_product(layer.o, room.out, x, own);
        normalise(y, layer.before_mlp, room.mlp);
        shrink(room.mlp, own);
        gate_and_up(own);
        room.down.x.put(room.gated.data(), layer.down.inputs);
        shrink(room.down, own);
        add_product(layer.down, room.down, y, own);
    }

  private:
    // Each of these ends when all threads are through with it.
    void normalise(const BFloat16* from, const Norm& norm, Wide& wide) {
        const Int width = layer.q.inputs;
#pragma omp for
        for (Int row = 0; row < rows; ++row) {
            rms_norm(from + row * width, norm.weight, room.normed.data() + row * width, width, norm.epsilon);
        }
        wide.x.put(room.normed.data(), width);
    }

    void shrink(Wide& wide, Own& own) {
        if (wide.shrinks.empty()) return;
        wide.shrinking.run([&](Int task) {
            const Shrink* shrink = &wide.shrinks[task];
            shrink->run(own.block, task + 1 < Int(wide.shrinks.size()) ? shrink + 1 : nullptr);
        });
    }

    void project(Own& own) {
        const Linear* linears[] = {&layer.q, &layer.k, &layer.v};
        BFloat16* results[] = {room.q.data(), room.k.data(), room.v.data()};
        room.attention.multiplying.run([&](Int task) {
            const Int block = task % starts[3];
            const int which = block >= starts[2] ? 2 : block >= starts[1] ? 1 : 0;
            const Linear& linear = *linears[which];
            const Int out = (block - starts[which]) * project_width, outs = std::min(project_width, linear.outputs - out);
            const Range range = part(layer.q, task / starts[3]);
            BFloat16* to = results[which] + out;
            products(linear, room.attention, which, range, out, outs, own.scratch[0], [&](Int row, Int count, const float* sums) {
                for (Int m = 0; m < count; ++m) round_row(sums + m * BLOCK, to + (row + m) * linear.outputs, outs);
            });
        });
    }

    void attend_all(Own& own) {
        const Cache& cache = layer.cache;
        const Int width = cache.width;
        const Rows query{room.q.data(), cache.heads * width, width};
        const Rows key{room.k.data(), cache.kv_heads * width, width}, value{room.v.data(), cache.kv_heads * width, width};
#pragma omp for
        for (Int row = 0; row < rows; ++row) {
            turn_heads(room.q.data() + row * query.token, cache.heads, layer.of_queries, row);
            turn_heads(room.k.data() + row * key.token, cache.kv_heads, layer.of_keys, row);
            write_slot(batch, row, key, value, cache);
        }
        room.attending.run(
            [&](Int task) { attend(room.tasks, task, batch, query, cache, own.attention, room.attended.data()); });
    }

    void turn_heads(BFloat16* heads, Int count, const Norm& norm, Int row) {
        const Int width = layer.cache.width;
        for (BFloat16* head = heads; head < heads + count * width; head += width) {
            if (norm.weight) rms_norm(head, norm.weight, head, width, norm.epsilon);
            rotate(head, turn.cos + row * width, turn.sin + row * width, width);
        }
    }

    void gate_and_up(Own& own) {
        const Int outputs = layer.gate.outputs, width = width_for(outputs), blocks = blocks_of(outputs, width);
        room.mlp.multiplying.run([&](Int task) {
            const Int out = task % blocks * width, outs = std::min(width, outputs - out);
            const Range range = part(layer.gate, task / blocks);
            Block up(layer.up, out, outs, range.count(), own.scratch[1]);
            products(layer.gate, room.mlp, 0, range, out, outs, own.scratch[0], [&](Int row, Int count, const float* gates) {
                float ups[TOGETHER * BLOCK];
                finish(up, layer.up, room.mlp, 1, row, out, outs, ups);
                for (Int m = 0; m < count; ++m) {
                    BFloat16 gate[BLOCK], other[BLOCK];
                    round_row(gates + m * BLOCK, gate, outs), round_row(ups + m * BLOCK, other, outs);
                    silu_product(gate, other, room.gated.data() + (row + m) * outputs + out, outs);
                }
            });
        });
    }

    // y = before + W x
    void add_product(const Linear& linear, Wide& wide, const BFloat16* before, Own& own) {
        const Int outputs = linear.outputs, width = width_for(outputs), blocks = blocks_of(outputs, width);
        wide.multiplying.run([&](Int task) {
            const Int out = task % blocks * width, outs = std::min(width, outputs - out);
            products(linear, wide, 0, part(linear, task / blocks), out, outs, own.scratch[0], [&](Int row, Int count, const float* sums) {
                for (Int m = 0; m < count; ++m) {
                    const Int at = (row + m) * outputs + out;
                    add_row(before + at, sums + m * BLOCK, y + at, outs);
                }
            });
        });
    }

    static Int width_for(Int outputs) { return block_width(outputs, omp_get_max_threads()); }
    static Int blocks_of(Int outputs, Int width) { return (outputs + width - 1) / width; }

    struct Range {
        Int first, stop;
        Int count() const { return stop - first; }
    };

    // All rows, in parts that stay in a cache while one block after the other is multiplied with them.
    Int parts_of(const Linear& linear) const { return (rows + rows_at_once(linear) - 1) / rows_at_once(linear); }

    Range part(const Linear& linear, Int number) const {
        const Int size = rows_at_once(linear);
        return {number * size, std::min(number * size + size, rows)};
    }

    // Sums of W x + s B (A x), times the gain, plus bias, for outputs [out, out + outs) of some rows, a group at a time.
    template <class Emit>
    void products(const Linear& linear, Wide& wide, int which, Range range, Int out, Int outs, Scratch& scratch, Emit emit) {
        Block block(linear, out, outs, range.count(), scratch);
        for (Int row = range.first; row < range.stop; row += TOGETHER) {
            float sums[TOGETHER * BLOCK];
            const Int count = finish(block, linear, wide, which, row, out, outs, sums);
            emit(row, count, sums);
        }
    }

    // The same for one group; returns its rows.
    Int finish(Block& block, const Linear& linear, const Wide& wide, int which, Int row, Int out, Int outs, float* sums) {
        const Shrinking& changes = wide.terms[which];
        if (changes.h_stride && rows <= DIRECT) changes.fetch_expansion(terms, out, outs);
        const Int count = block.products(wide.x, row, sums);
        if (changes.h_stride) changes.change_rows(terms, row, count, out, outs, sums, BLOCK);
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

    const DecoderLayer& layer;
    const Batch& batch;
    const Terms& terms;
    const Turn turn;
    const BFloat16* x;
    BFloat16* y;
    const Int rows;
    Room& room;
    Int project_width, starts[4] = {};  // the projections' blocks: how wide, and where each one's begin
};

}  // namespace

// y [tokens, hidden] of x; y is not x.
extern "C" void decoder_layer_bf16(const DecoderLayer* layer, const Batch* batch, const Term* data, Int count,
                                   const BFloat16* cos, const BFloat16* sin, const BFloat16* x, BFloat16* y) {
    static thread_local Room room;
    const Terms terms{data, count};
    Pass pass(*layer, *batch, terms, {cos, sin}, x, y, room);
#pragma omp parallel
    {
        static thread_local Own own;
        const TileUse tiles;
        pass.run(own);
    }
}
