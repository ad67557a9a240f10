// A team of threads: every parallel loop of the kernels is a Team's share().
//
//     with_team(threads, [&](Team& team) {                    // every thread runs this
//         team.share(rows, [&](int64_t row) { ... });         // each row is done once, by one of them
//         team.share(panels, [&](int64_t panel) { ... });     // begins when all rows are done
//     });
//
// OpenMP starts the threads, and where each of them has a core of its own its loops and barriers would do as well. But
// while something else runs, such as a loader of data, threads are taken off their cores for milliseconds at a time,
// and in OpenMP's barriers all others wait for that: they spin, on cores that the missing thread could use. With a
// hundred barriers in a call that made it up to 30 times slower. Here
//   - a thread that has done its own items helps the others with theirs (work stealing, Blumofe and Leiserson 1999), so
//     that nobody waits for more than the one item that a missing thread was at;
//   - a thread that has to wait spins for some microseconds and then sleeps (Karlin et al., "Empirical studies of
//     competitive spinning for a shared-memory multiprocessor", 1991), and the system moves the missing thread to its
//     core.
#pragma once

#include <omp.h>
#include <pthread.h>

#include <cstdint>

namespace engine::ENGINE_ISA {
namespace {

class Team {
public:
    static constexpr int kMostThreads = 256;  // a team lies on the stack

    explicit Team(int threads) {
        for (int thread = 0; thread < threads; ++thread) taken_[thread].items = 0;
    }

    static int64_t this_thread() { return omp_get_thread_num(); }
    static int64_t threads() { return omp_get_num_threads(); }

    // Calls work(item) for every item from 0 to items - 1, in any order, and returns when all of them are done. Every
    // thread of the team has to come here. Each begins with items of its own, neighbours and the same ones whenever
    // there are as many items, for what it has in its caches.
    template <typename Work>
    void share(int64_t items, const Work& work) {
        for (int64_t turn = 0; turn < threads(); ++turn) {
            const int64_t owner = (this_thread() + turn) % threads();
            const int64_t first = owner * items / threads(), last = (owner + 1) * items / threads();
            for (int64_t item = first + take(owner); item < last; item = first + take(owner)) work(item);
        }
        wait();
    }

private:
    // How many items of a thread's share have been taken, by itself or by helpers; each in a cache line of its own.
    struct alignas(64) Taken {
        int64_t items;
    };
    // How often a waiting thread looks before it sleeps: for some ten microseconds, about what waking it takes.
    static constexpr int kLooks = 500;

    int64_t take(int64_t owner) { return __atomic_fetch_add(&taken_[owner].items, 1, __ATOMIC_RELAXED); }

    // Returns when all threads of the team have called this as often.
    void wait() {
        const int64_t now = phase();
        if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == threads()) return begin_phase(now + 1);
        for (int look = 0; look < kLooks; ++look) {
            if (phase() != now) return;
            pause();
        }
        pthread_mutex_lock(&mutex_);
        while (phase() == now) pthread_cond_wait(&changed_, &mutex_);
        pthread_mutex_unlock(&mutex_);
    }

    int64_t phase() const { return __atomic_load_n(&phase_, __ATOMIC_ACQUIRE); }

    // Called by the last thread to arrive, while all others wait.
    void begin_phase(int64_t phase) {
        for (int64_t thread = 0; thread < threads(); ++thread)
            __atomic_store_n(&taken_[thread].items, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
        pthread_mutex_lock(&mutex_);
        __atomic_store_n(&phase_, phase, __ATOMIC_RELEASE);
        pthread_mutex_unlock(&mutex_);
        pthread_cond_broadcast(&changed_);
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    Taken taken_[kMostThreads];
    alignas(64) int64_t arrived_ = 0;  // threads that wait for the next phase
    alignas(64) int64_t phase_ = 0;    // how many loops have been finished
    pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed_ = PTHREAD_COND_INITIALIZER;
};

// Calls body(team) in each of `threads` threads, or in fewer if OpenMP has no more.
template <typename Body>
void with_team(int threads, const Body& body) {
    if (threads > Team::kMostThreads) threads = Team::kMostThreads;
    Team team(threads);
#pragma omp parallel num_threads(threads)
    body(team);
}

// One loop by a team of its own.
template <typename Work>
void share(int threads, int64_t items, const Work& work) {
    with_team(threads, [&](Team& team) { team.share(items, work); });
}

}  // namespace
}  // namespace engine::ENGINE_ISA
