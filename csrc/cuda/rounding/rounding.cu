// Rounding on a GPU: which thread rounds which elements, with which random bits.
#include "rounding.h"

#include "elements.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32;

// Adds what all threads of a block have seen to the counts; every thread comes here.
__device__ void add_counts(const Tally& tally, int64_t* counts) {
    ENGINE_UNROLL
    for (int number = 0; number < kRoundingCounts; ++number) {
        int sum = tally.of[number];
        for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffff, sum, distance);
        if (threadIdx.x % kWarp != 0 || sum == 0) continue;
#if defined(ENGINE_CUDA_ON_HOST)
        __atomic_fetch_add(counts + number, sum, __ATOMIC_RELAXED);
#else
        atomicAdd(reinterpret_cast<unsigned long long*>(counts + number), static_cast<unsigned long long>(sum));
#endif
    }
}

// Elements in the order of memory: a thread has one block of the generator, and its eight elements lie a row of a group
// apart, so that neighbouring threads read neighbours.
template <typename Kind>
__global__ void __launch_bounds__(kThreads) round_in_order(RoundingCall call, int64_t first_group) {
    const int64_t count = call.order.batches * call.order.rows * call.order.columns;
    const int64_t counter = first_group * kDrawLanes + int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const uint64_t step = Kind::kStochastic ? uint64_t(*call.step) : 0;
    const Kind kind(call, step);
    PhiloxBlock block{};
    if (Kind::kStochastic) block = philox_block(call.key, uint64_t(counter), step);
    Tally tally{};
    ENGINE_UNROLL
    for (int row = 0; row < kDrawRows; ++row) {
        const int64_t element = counter / kDrawLanes * kDrawGroup + row * kDrawLanes + counter % kDrawLanes;
        const int64_t index = element - call.order.first;
        if (index < 0 || index >= count) continue;
        const uint32_t word = block.word[row % 4];
        kind.round(index, uint64_t(element), row < 4 ? word & 0xffff : word >> 16, tally);
        ++tally.of[kSeen];
    }
    if (call.counts) add_counts(tally, call.counts);
}

// Elements down the columns of matrices: a thread has one, and a block of the generator for it.
template <typename Kind>
__global__ void __launch_bounds__(kThreads) round_down_columns(RoundingCall call) {
    const int64_t rows = call.order.rows, columns = call.order.columns, size = rows * columns;
    const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const uint64_t step = uint64_t(*call.step);
    const Kind kind(call, step);
    Tally tally{};
    if (index < call.order.batches * size) {
        const int64_t batch = index / size, place = index - batch * size, row = place / columns;
        const int64_t column = place - row * columns;
        const uint64_t element = uint64_t(call.order.first + batch * size + column * rows + row);
        kind.round(index, element, draw_of(call.key, element, step), tally);
        ++tally.of[kSeen];
    }
    if (call.counts) add_counts(tally, call.counts);
}

template <typename Kind>
cudaError_t round_all(const RoundingCall& call, cudaStream_t stream) {
    const RoundingOrder& order = call.order;
    const int64_t count = order.batches * order.rows * order.columns;
    if (count == 0) return cudaSuccess;
    const int64_t first_group = order.first / kDrawGroup;
    const int64_t groups = (order.first + count - 1) / kDrawGroup + 1 - first_group;
    const bool down = Kind::kStochastic && order.rows > 1 && order.columns > 1;
    const int64_t threads = down ? count : groups * kDrawLanes, blocks = (threads + kThreads - 1) / kThreads;
    if (blocks > 2147483647) return cudaErrorInvalidConfiguration;
    if constexpr (Kind::kStochastic)
        if (down) return launch(round_down_columns<Kind>, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, call);
    return launch(round_in_order<Kind>, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, call, first_group);
}

template <typename T>
cudaError_t fixed(const RoundingCall& call, cudaStream_t stream) {
    return call.stochastic ? round_all<Fixed<T, true>>(call, stream) : round_all<Fixed<T, false>>(call, stream);
}
cudaError_t bfloat16(const RoundingCall& call, cudaStream_t stream) {
    return call.stochastic ? round_all<ToBFloat16<true>>(call, stream) : round_all<ToBFloat16<false>>(call, stream);
}

}  // namespace

const CudaRoundingKernels rounding = {fixed<float>,         fixed<double>,
                                      bfloat16,             round_all<ToFloat16>,
                                      round_all<AddBFloat16<true>>, round_all<AddBFloat16<false>>};

}  // namespace cuda
}  // namespace engine
