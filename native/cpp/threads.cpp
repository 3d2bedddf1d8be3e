// The pools of threads that OpenMP keeps, one for each thread that ever computed in parallel. While there are more
// threads in all pools together than processors, those that wait for their next piece of work go to sleep at once, and
// waking them takes longer than most pieces do.
#include <omp.h>

// Ends the pool of the thread that calls; it gets a new one when it computes again.
extern "C" void release_threads() { omp_pause_resource_all(omp_pause_soft); }

// From now on the thread that calls computes by itself.
extern "C" void work_alone() { omp_set_num_threads(1); }
