// How a team of threads shares out numbered tasks. Knows nothing of what they are.
#pragma once

#include <atomic>
#include <memory>
#include <omp.h>

#include "common.h"

// Each thread takes one task after the other of a share of its own, so that what it reads lies together and what it
// asks for ahead is what it needs next. Whoever is through goes on with the others' shares.
class Deal {
  public:
    // By one thread, before the team works.
    void set(Int tasks) {
        const Int team = omp_get_max_threads();
        if (team > size) shares = std::make_unique<Share[]>(size = team);
        count = team;
        for (Int i = 0; i < count; ++i) {
            shares[i].next.store(tasks * i / count, std::memory_order_relaxed);
            shares[i].stop = tasks * (i + 1) / count;
        }
    }

    // By every thread of the team; ends when all are through.
    template <class Work>
    void run(Work work) {
        for (Int i = 0, own = omp_get_thread_num(); i < count; ++i) {
            Share& share = shares[(own + i) % count];
            for (Int task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.stop;) work(task);
        }
#pragma omp barrier
    }

  private:
    struct alignas(64) Share {
        std::atomic<Int> next;
        Int stop;
    };

    std::unique_ptr<Share[]> shares;
    Int size = 0, count = 0;
};
