// Small kernels with a defect each, and the same without it, for the tests of the host's CUDA (test_emulator.py).
// In all of them out[thread] is written by the thread of that number in the launch.
#include <cstring>

#include "cuda/device.h"

namespace engine {
namespace {

constexpr unsigned kAll = 0xffffffff;

struct Line {
    float at[256];
};

__device__ unsigned lane() { return threadIdx.x % 32; }
__device__ unsigned number() { return blockIdx.x * blockDim.x + threadIdx.x; }

// The block's numbers backwards. Defect: no barrier between the store and another thread's load.
template <bool correct>
__global__ void missing_barrier(float* out) {
    Line& line = shared_memory<Line>();
    line.at[threadIdx.x] = float(threadIdx.x);
    if (correct) block_barrier();
    out[number()] = line.at[blockDim.x - 1 - threadIdx.x];
}

// The same within each warp.
template <bool correct>
__global__ void missing_warp_barrier(float* out) {
    Line& line = shared_memory<Line>();
    line.at[threadIdx.x] = float(threadIdx.x);
    if (correct) warp_barrier();
    out[number()] = line.at[threadIdx.x ^ 31];
}

// Of the warp beside. Defect: a warp's barrier where two warps meet.
template <bool correct>
__global__ void warp_barrier_for_a_block(float* out) {
    Line& line = shared_memory<Line>();
    line.at[threadIdx.x] = float(threadIdx.x);
    correct ? block_barrier() : warp_barrier();
    out[number()] = line.at[threadIdx.x ^ 32];
}

// As before, with a step between.
template <bool correct>
__global__ void warp_ahead(float* out) {
    Line& line = shared_memory<Line>();
    line.at[threadIdx.x] = -1;
    block_barrier();
    line.at[threadIdx.x] = float(threadIdx.x);
    warp_barrier();
    if (correct) block_barrier();
    warp_barrier();
    out[number()] = line.at[threadIdx.x ^ 32];
}

// Defect: some threads wait at one barrier, some at the other.
template <bool correct>
__global__ void divergent_barrier(float* out) {
    if (correct || threadIdx.x < 32) {
        block_barrier();
    } else {
        block_barrier();
    }
    out[number()] = 1;
}

// Defect: half of the threads leave before the barrier.
template <bool correct>
__global__ void left_before_barrier(float* out) {
    out[number()] = 1;
    if (!correct && threadIdx.x >= blockDim.x / 2) return;
    block_barrier();
}

// Defect: some lanes do not come to the shuffle.
template <bool correct>
__global__ void missing_lane(float* out) {
    float value = 1;
    if (correct || lane() != 5) value += __shfl_xor_sync(kAll, value, 1);
    block_barrier();
    out[number()] = value;
}

// Defect: some lanes have left before it.
template <bool correct>
__global__ void left_before_shuffle(float* out) {
    out[number()] = 1;
    if (!correct && lane() == 31) return;
    out[number()] += __shfl_sync(kAll, 1.0f, 0);
}

// Defect: lanes of a warp in different shuffles.
template <bool correct>
__global__ void divergent_shuffle(float* out) {
    if (correct || lane() < 16)
        out[number()] = __shfl_sync(kAll, float(lane()), 3);
    else
        out[number()] = __shfl_sync(kAll, float(lane()), 3);
}

// Defect: not all lanes are named.
template <bool correct>
__global__ void partial_mask(float* out) {
    out[number()] = __shfl_sync(correct ? kAll : 0xffff, float(lane()), 3);
}

// Defect: in a last warp of eight lanes the other eight of a half are not there.
template <bool correct>
__global__ void absent_lane(float* out) {
    out[number()] = __shfl_xor_sync(kAll, float(lane()), correct ? 4 : 8);
}

// Defect: reads what nobody has written.
template <bool correct>
__global__ void uninitialised(float* out) {
    Line& line = shared_memory<Line>();
    if (correct || threadIdx.x != 7) line.at[threadIdx.x] = 2;
    block_barrier();
    out[number()] = line.at[threadIdx.x];
}

// Defect: stores one behind the end.
template <bool correct>
__global__ void behind_the_end(float* out) {
    Line& line = shared_memory<Line>();
    float* at = line.at;
    at[threadIdx.x + (correct || threadIdx.x < 255 ? 0 : 1)] = 1;
    out[number()] = 1;
}

// Defect: needs a block to have run before another.
template <bool correct>
__global__ void order_of_blocks(float* out) {
    const unsigned beside = blockIdx.x ? number() - blockDim.x : number();
    out[number()] = correct ? float(blockIdx.x) : beside == number() ? 0 : out[beside] + 1;
}

// Sums over each warp in three ways, which must agree: down, across, and of one lane.
template <bool correct>
__global__ void sums(float* out) {
    float down = float(lane()), across = down;
    for (int by = 16; by; by /= 2) {
        down += __shfl_down_sync(kAll, down, unsigned(by));
        across += __shfl_xor_sync(kAll, across, by);
    }
    out[number()] = across == __shfl_sync(kAll, down, 0) ? across : -1;
}

// What a lane gets from beyond the last: its own.
template <bool correct>
__global__ void down_by_three(float* out) {
    out[number()] = float(__shfl_down_sync(kAll, int(lane()), 3u));
}

// A block's shape and place, told by every thread.
template <bool correct>
__global__ void places(float* out) {
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int* at = reinterpret_cast<int*>(out) + block * blockDim.x * blockDim.y * blockDim.z + thread;
    atomicAdd(at, int(block * 1000 + thread));
}

struct Case {
    const char* name;
    void (*correct)(float*);
    void (*broken)(float*);
};

#define CASE(kernel) {#kernel, kernel<true>, kernel<false>}
constexpr Case kCases[] = {
    CASE(missing_barrier),     CASE(missing_warp_barrier), CASE(warp_barrier_for_a_block), CASE(warp_ahead),
    CASE(divergent_barrier),   CASE(left_before_barrier),  CASE(missing_lane),             CASE(left_before_shuffle),
    CASE(divergent_shuffle),   CASE(partial_mask),         CASE(absent_lane),              CASE(uninitialised),
    CASE(behind_the_end),      CASE(order_of_blocks),      CASE(sums),                     CASE(down_by_three),
    CASE(places),
};

}  // namespace
}  // namespace engine

#define ENGINE_VISIBLE __attribute__((visibility("default")))

// Returns what went wrong, or "". grid and block: three sizes each.
extern "C" ENGINE_VISIBLE const char* run_case(const char* name, bool correct, uint64_t seed, const unsigned* grid,
                                               const unsigned* block, uint64_t shared_bytes, float* out) {
    using namespace engine;
    host::seed = seed;
    for (const Case& one : kCases) {
        if (std::strcmp(one.name, name)) continue;
        const cudaError_t error = launch(correct ? one.correct : one.broken, dim3(grid[0], grid[1], grid[2]),
                                         dim3(block[0], block[1], block[2]), shared_bytes, nullptr, out);
        return error == cudaSuccess ? "" : host::failure().c_str();
    }
    return "no such case";
}
