// Runs the blocks of a launch one after the other, and the threads of a block as fibers: each up to its next barrier or
// shuffle, then the next one. When all that a barrier is for have come, they go on; when they never will, that is told.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline uint3 threadIdx, blockIdx;  // of the fiber that runs
inline dim3 blockDim, gridDim;

namespace engine {
namespace host {

constexpr unsigned kWarp = 32;
#if defined(ENGINE_ADDRESS_SANITIZER)
constexpr size_t kTail = 0;  // it sees what lies behind an array
#else
constexpr size_t kTail = 256;  // bytes behind the shared memory, in which no store may be found
#endif

enum class State { runs, at_barrier, in_warp, done };

struct Thread {
    Fiber fiber;
    uint3 index;
    unsigned number;
    State state;
    const char* file;  // where it waits
    int line;
    unsigned met[2];     // how often it has met its block, and its warp
    char places[2][2];   // where a block, and a warp, meets that it is the first of
    uint64_t passed[2];  // what it hands to the other lanes, by turns of meeting them
};

// Splitmix64 (Steele, Lea and Flood 2014): the same orders wherever the tests run.
struct Random {
    uint64_t state;
    uint64_t operator()() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    template <typename T>
    void shuffle(std::vector<T>& order) {  // Fisher and Yates
        for (uint64_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[((*this)() >> 32) * i >> 32]);
    }
};

// What is launched, and the block of it that runs.
struct Launch {
    std::vector<Thread> threads;
    void (*kernel)(const void* arguments);
    const void* arguments;
    unsigned char* shared;
    size_t shared_bytes;
    Fiber scheduler;
    Thread* current;  // the one that runs
    std::string failure;
    char begin, end;  // where the threads of a block meet the scheduler
};

inline uint64_t seed = 0;  // of the orders; 0: by index
inline std::string failed_with;
inline Launch* running = nullptr;  // there is one at a time
inline std::mutex one_at_a_time;
inline Stacks stacks;

// What was wrong with the last launch, or "".
inline const std::string& failure() { return failed_with; }

// Ends the turn of the thread at hand; returns when its next one begins.
ENGINE_UNWATCHED inline void wait(State state, const char* file, int line) {
    Thread& thread = *running->current;
    thread.state = state, thread.file = file, thread.line = line;
    // Two places by turns: none comes to the next but one before all have left this one.
    Thread& host = running->threads[state == State::in_warp ? thread.number / kWarp * kWarp : 0];
    unsigned& met = thread.met[state == State::in_warp];
    void* place = &host.places[state == State::in_warp][met++ % 2];
    before_meeting(place);
    go_on(thread.fiber, running->scheduler);
    after_meeting(place);
}

// Ends the thread at hand.
[[noreturn]] ENGINE_UNWATCHED inline void leave() {
    Thread& thread = *running->current;
    thread.state = State::done;
    before_meeting(&running->end);
    go_on(thread.fiber, running->scheduler, true);
    std::abort();  // nobody resumes it
}

ENGINE_UNWATCHED inline void run_thread() {
    arrived(running->scheduler);
    after_meeting(&running->begin);
    running->kernel(running->arguments);
    leave();
}

// Ends the launch with an error: the thread at hand goes no further.
[[noreturn]] inline void stop(const std::string& reason) {
    running->failure = reason;
    leave();
}

inline std::string describe(const Thread& thread) {
    const std::string who = "thread " + std::to_string(thread.number);
    if (thread.state == State::done) return who + " has left";
    return who + (thread.state == State::in_warp ? " waits for its warp at " : " waits at the barrier of ") +
           thread.file + ":" + std::to_string(thread.line);
}

// Lets threads [first, last) go on if they all wait at the same place; else notes who does not, as they never will.
inline void release(Launch& launch, size_t first, size_t last) {
    auto& threads = launch.threads;
    for (size_t i = first + 1; i < last; ++i) {
        const Thread &one = threads[first], &other = threads[i];
        if (one.state == other.state && one.line == other.line &&
            (one.file == other.file || !std::strcmp(one.file, other.file)))
            continue;
        launch.failure = describe(one) + " while " + describe(other);
        return;
    }
    for (size_t i = first; i < last; ++i) threads[i].state = State::runs;
}

// After a turn: lets go on the warps whose lanes wait for each other, or the block if all its threads are at a barrier.
inline void release(Launch& launch) {
    auto& threads = launch.threads;
    bool others_come = false;
    for (size_t first = 0; first < threads.size(); first += kWarp) {
        const size_t last = std::min(first + kWarp, threads.size());
        bool in_warp = false;
        for (size_t i = first; i < last; ++i) {
            in_warp |= threads[i].state == State::in_warp;
            others_come |= threads[i].state == State::in_warp || threads[i].state == State::runs;
        }
        if (in_warp) release(launch, first, last);
        if (!launch.failure.empty()) return;
    }
    if (!others_come) release(launch, 0, threads.size());
}

ENGINE_UNWATCHED inline void run_block(Launch& launch, std::vector<unsigned>& order, Random& random) {
    std::memset(launch.shared, 0xff, launch.shared_bytes);  // NaN as float and as double
    for (Thread& thread : launch.threads) {
        thread.state = State::runs, thread.file = "";
        stacks.start(thread.fiber, thread.number, run_thread);
    }
    before_meeting(&launch.begin);
    for (size_t left = 0; left < order.size();) {
        if (seed) random.shuffle(order);
        const uint64_t late = seed ? random() & random() : 0;  // a bit for each warp that this turn leaves out
        for (unsigned number : order) {
            Thread& thread = launch.threads[number];
            if (thread.state != State::runs || (late >> number / kWarp & 1)) continue;
            launch.current = &thread;
            threadIdx = thread.index;
            go_on(launch.scheduler, thread.fiber);
            left += thread.state == State::done;
            if (!launch.failure.empty()) return;
        }
        if (left < order.size()) release(launch);
        if (!launch.failure.empty()) return;
    }
    after_meeting(&launch.end);
    for (size_t i = 0; i < kTail; ++i)
        if (launch.shared[launch.shared_bytes + i] != 0xff) launch.failure = "a store went behind the shared memory";
}

// Returns whether all of it ran; failure() tells what did not.
inline bool run_grid(dim3 grid, dim3 size, size_t shared_bytes, void (*kernel)(const void*), const void* arguments) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const std::unique_ptr<unsigned char, decltype(&std::free)> shared(
        static_cast<unsigned char*>(std::malloc(shared_bytes + kTail)), &std::free);
    std::memset(shared.get() + shared_bytes, 0xff, kTail);
    Launch launch{std::vector<Thread>(size_t(size.x) * size.y * size.z), kernel, arguments, shared.get(), shared_bytes,
                  own_fiber(), nullptr, "", 0, 0};
    std::vector<unsigned> order(launch.threads.size());
    for (unsigned i = 0; i < order.size(); ++i) {
        order[i] = launch.threads[i].number = i;
        launch.threads[i].index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    }
    std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
    Random random{seed};
    if (seed) random.shuffle(blocks);
    running = &launch, gridDim = grid, blockDim = size;
    for (size_t i = 0; i < blocks.size() && launch.failure.empty(); ++i) {
        const uint64_t x = blocks[i] % grid.x, y = blocks[i] / grid.x % grid.y, z = blocks[i] / grid.x / grid.y;
        blockIdx = {unsigned(x), unsigned(y), unsigned(z)};
        run_block(launch, order, random);
        if (!launch.failure.empty())
            launch.failure += ", in block " + std::to_string(x) + " " + std::to_string(y) + " " + std::to_string(z);
    }
    running = nullptr;
    failed_with = launch.failure;
    return failed_with.empty();
}

}  // namespace host
}  // namespace engine
