// Enough of CUDA C++ to run the kernels of csrc/cuda on the host, for tests on machines without a GPU.
//
// Each thread of a block is a fiber. Fibers run one after the other, each up to its next barrier or shuffle; blocks run
// one after the other. With a seed both orders are drawn from it, that of the fibers anew at every turn, and warps get
// ahead of one another between block barriers; so what no barrier puts in order shows as a result that depends on the
// seed. Shared memory holds NaN before the first store and ends where what was asked for ends.
//
// What is found is told as an error of the launch, with its text in host::failure(): threads that wait at different
// barriers or for threads that have left, shuffles with lanes that do not take part or do not exist, stores behind the
// shared memory, a launch that no GPU takes. A GPU forgives some of it. Under the address and undefined-behaviour
// sanitizers also loads and stores outside of arrays, and addresses that a vector load may not have.
//
// Not covered: tensor cores, asynchronous copies, shuffles of a part of a warp, what __launch_bounds__ and registers
// allow, orders of single loads and stores of two threads between the same barriers, the speed of anything, and the
// GPU's own functions for sin, exp and the like, which round otherwise.
#pragma once

#include <math.h>  // not <cmath>: fma and the like in the global namespace, for float too, as in CUDA

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

using cudaStream_t = void*;
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719
};

namespace engine {
namespace host {

// What is wrong with a launch on any GPU from sm_80 on, or "".
inline std::string mistake(dim3 grid, dim3 block, size_t shared_bytes) {
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (threads < 1 || threads > 1024 || block.z > 64)
        return "a block has 1 to 1024 threads, 64 along z, not " + std::to_string(threads);
    if (!grid.x || !grid.y || !grid.z || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
        return "a grid has 1 to 2147483647 x 65535 x 65535 blocks, not " + std::to_string(grid.x) + " x " +
               std::to_string(grid.y) + " x " + std::to_string(grid.z);
    if (shared_bytes > (99u << 10))
        return "a block has at most 101376 bytes of shared memory, not " + std::to_string(shared_bytes);
    return "";
}

// The lane of the fiber that runs.
ENGINE_UNWATCHED inline unsigned lane() { return running->current->number % kWarp; }

template <typename T>
ENGINE_UNWATCHED T shuffle(unsigned mask, T value, unsigned from, const char* file, int line) {
    static_assert(std::is_arithmetic<T>::value && sizeof(T) <= sizeof(uint64_t), "CUDA shuffles numbers alone");
    Thread& thread = *running->current;
    const unsigned source = thread.number - lane() + from;
    if (mask != 0xffffffff || source >= running->threads.size())
        stop(std::string("a shuffle ") + (mask != 0xffffffff ? "without all lanes" : "from a lane that is not there") +
             " at " + file + ":" + std::to_string(line));
    // Two by turns: a lane writes to one again after the next meeting, to which none comes before it has read this one.
    const unsigned turn = thread.met[1] % 2;
    std::memcpy(&thread.passed[turn], &value, sizeof value);
    wait(State::in_warp, file, line);
    std::memcpy(&value, &running->threads[source].passed[turn], sizeof value);
    return value;
}

}  // namespace host

template <typename T>
T& shared_memory() {
    if (sizeof(T) > host::running->shared_bytes) host::stop("a kernel takes more shared memory than its launch gives");
    return *reinterpret_cast<T*>(host::running->shared);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   Arguments... arguments) {
    static_assert((std::is_trivially_copyable<Parameters>::value && ...), "the GPU gets the arguments as bytes");
    static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a launch takes 4 KiB of arguments");
    host::failed_with = host::mistake(grid, block, shared_bytes);
    if (!host::failed_with.empty()) return cudaErrorInvalidConfiguration;
    const auto call = [=] { kernel(arguments...); };
    const auto enter = [](const void* closure) { (*static_cast<decltype(&call)>(closure))(); };
    return host::run_grid(grid, block, shared_bytes, enter, &call) ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace engine

// The functions of CUDA; those that wait note where they were called.

inline void block_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    engine::host::wait(engine::host::State::at_barrier, file, line);
}
inline void warp_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    engine::host::wait(engine::host::State::in_warp, file, line);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return engine::host::shuffle(mask, value, unsigned(from) % 32, file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return engine::host::shuffle(mask, value, (engine::host::lane() ^ unsigned(bits)) % 32, file, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
    const unsigned own = engine::host::lane();
    return engine::host::shuffle(mask, value, own + by < 32 ? own + by : own, file, line);
}

template <typename T>
T __ldg(const T* address) {
    return *address;
}

inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
