// Sharing of numbered tasks among a team of threads, with work stealing. Knows nothing of what the tasks are.
#pragma once

#include <atomic>
#include <memory>
#include <omp.h>

#include "common.h"

// Each thread runs the tasks of a contiguous share of its own, so that it reads memory in order and prefetches what it
// needs next. A thread that has finished its share takes tasks from the others'.
class TaskSharing {
  public:
    // Called by one thread, before the team starts.
    void set(Int tasks) {
        const Int team = omp_get_max_threads();
        if (team > size) shares = std::make_unique<Share[]>(size = team);
        count = team;
        for (Int i = 0; i < count; ++i) {
            Share& share = shares[i];
            share.start = tasks * i / count, share.stop = tasks * (i + 1) / count;
            share.next.store(share.start, std::memory_order_relaxed);
        }
    }

    // Called by every thread of the team; returns when all tasks are done. `work(task, following)`: the thread's task
    // after this one, or NONE when others' shares or other work come next.
    template <class Work>
    void run(Work work) {
        for (Int i = 0, own = omp_get_thread_num(); i < count; ++i) {
            Share& share = shares[(own + i) % count];
            for (Int task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.stop;)
                work(task, i == 0 && task + 1 < share.stop ? task + 1 : NONE);
        }
#pragma omp barrier
    }

    // The calling thread's share: tasks [start, stop).
    Int start() const { return shares[omp_get_thread_num()].start; }
    Int stop() const { return shares[omp_get_thread_num()].stop; }
    Int first() const { return start() < stop() ? start() : NONE; }

    static constexpr Int NONE = -1;

  private:
    struct alignas(64) Share {
        std::atomic<Int> next;
        Int start, stop;
    };

    std::unique_ptr<Share[]> shares;
    Int size = 0, count = 0;
};
