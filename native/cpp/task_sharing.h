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
            share.first = tasks * i / count, share.stop = tasks * (i + 1) / count;
            share.next.store(share.first, std::memory_order_relaxed);
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

    // The first task of the calling thread's share, or NONE.
    Int first() const {
        const Share& own = shares[omp_get_thread_num()];
        return own.first < own.stop ? own.first : NONE;
    }

    static constexpr Int NONE = -1;

  private:
    struct alignas(64) Share {
        std::atomic<Int> next;
        Int first, stop;
    };

    std::unique_ptr<Share[]> shares;
    Int size = 0, count = 0;
};
