// Local response normalisation on a GPU. A thread has one place of an image and goes through a run of its channels: in
// NCHW neighbouring threads read neighbours, and a window's other channels lie in the caches.
#include "lrn.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kEnough = 1 << 18;              // threads that occupy any GPU: no shorter runs for more
constexpr int64_t kShortest = 16;                 // channels of a run
constexpr size_t kMostShared = size_t{96} << 10;  // bytes of a block

// A call in numbers of T, and where the channels of a thread's place are.
template <typename T, bool three_quarters>
struct Place {
    const T* x;
    const T* gradient;
    T* out;
    int64_t stride, channels, below, above;
    int64_t first, last;  // the thread's run; none beyond the end
    T scale, k, beta, factor;

    __device__ __forceinline__ Place(const LrnCall& call, int64_t run)
        : stride(call.innermost ? 1 : call.places), channels(call.channels), below(call.below), above(call.above),
          first(0), last(0), scale(T(call.scale)), k(T(call.k)), beta(T(call.beta)),
          factor(T(2 * call.beta * call.scale)) {
        const int64_t runs = (channels + run - 1) / run, number = int64_t{blockIdx.x} * kThreads + threadIdx.x;
        const int64_t rest = number / call.places, place = number % call.places, image = rest / runs;
        int64_t begin = 0;
        if (image < call.images) {
            first = rest % runs * run;
            last = first + run < channels ? first + run : channels;
            begin = image * channels * call.places + place * (call.innermost ? channels : 1);
        }
        x = static_cast<const T*>(call.x) + begin;
        gradient = static_cast<const T*>(call.gradient) + (call.gradient ? begin : 0);
        out = static_cast<T*>(call.out) + begin;
    }

    __device__ __forceinline__ T sum(int64_t channel) const {
        const int64_t low = channel > below ? channel - below : 0;
        const int64_t high = channel + above < channels ? channel + above : channels - 1;
        T squares = 0;
        for (int64_t other = low; other <= high; ++other) squares += x[other * stride] * x[other * stride];
        return scale * squares + k;
    }

    __device__ __forceinline__ T quotient(int64_t channel) const {
        const T s = sum(channel);
        if constexpr (three_quarters) return x[channel * stride] / (sqrt(s) * sqrt(sqrt(s)));
        return x[channel * stride] * pow(s, -beta);
    }

    // g as csrc/lrn.h has it; over: the gradient over s^beta.
    __device__ __forceinline__ T weigh(int64_t channel, T& over) const {
        const T s = sum(channel);
        T power, reciprocal;  // both 0 for a sum beyond all numbers
        if constexpr (three_quarters) {
            const T quarter = T(1) / sqrt(sqrt(s)), half = quarter * quarter;
            power = half * quarter;
            reciprocal = half * half;
        } else {
            power = pow(s, -beta);
            reciprocal = T(1) / s;
        }
        over = gradient[channel * stride] * power;
        return over * x[channel * stride] * reciprocal;
    }

    __device__ __forceinline__ void finish(int64_t channel, T over, T total) const {
        out[channel * stride] = over - factor * x[channel * stride] * total;
    }
};

template <typename T, bool three_quarters>
__global__ void __launch_bounds__(kThreads) forward(LrnCall call, int64_t run) {
    const Place<T, three_quarters> place(call, run);
    for (int64_t channel = place.first; channel < place.last; ++channel)
        place.out[channel * place.stride] = place.quotient(channel);
}

// Keeps g and the gradient over s^beta of as many channels as a window has, in a ring of the thread's own; with zeros
// for channels that are not there, all of the ring is the window of the channel in its middle.
template <typename T, bool three_quarters>
__global__ void __launch_bounds__(kThreads) backward(LrnCall call, int64_t run) {
    const Place<T, three_quarters> place(call, run);
    const int rows = int(place.below + place.above) + 1;
    T* const g = &shared_memory<T>() + threadIdx.x;
    T* const over = g + rows * kThreads;
    for (int row = 0; row < rows; ++row) g[row * kThreads] = 0;
    int64_t channel = place.first > place.above ? place.first - place.above : 0;
    int newest = 0, middle = int(rows - place.below) % rows;
    for (; channel < place.last + place.below; ++channel) {
        g[newest * kThreads] = channel < place.channels ? place.weigh(channel, over[newest * kThreads]) : 0;
        if (const int64_t own = channel - place.below; own >= place.first) {
            T total = 0;
            for (int row = 0; row < rows; ++row) total += g[row * kThreads];
            place.finish(own, over[middle * kThreads], total);
        }
        newest = newest + 1 == rows ? 0 : newest + 1;
        middle = middle + 1 == rows ? 0 : middle + 1;
    }
}

// For windows that no ring holds: computes what others keep again, for every channel.
template <typename T, bool three_quarters>
__global__ void __launch_bounds__(kThreads) backward_of_wide_windows(LrnCall call, int64_t run) {
    const Place<T, three_quarters> place(call, run);
    for (int64_t channel = place.first; channel < place.last; ++channel) {
        const int64_t low = channel > place.above ? channel - place.above : 0;
        const int64_t high = channel + place.below < place.channels ? channel + place.below : place.channels - 1;
        T total = 0, own = 0;
        for (int64_t other = low; other <= high; ++other) {
            T over;
            total += place.weigh(other, over);
            if (other == channel) own = over;
        }
        place.finish(channel, own, total);
    }
}

template <typename T, bool three_quarters>
cudaError_t run_power(const LrnCall& call, cudaStream_t stream) {
    const int64_t rows = call.below + call.above + 1, places = call.images * call.places;
    int64_t run = call.channels;
    while (places * (call.channels / run) < kEnough && run >= 2 * kShortest && run >= 4 * rows) run = (run + 1) / 2;
    const int64_t blocks = (places * ((call.channels + run - 1) / run) + kThreads - 1) / kThreads;
    if (blocks > 2147483647) return cudaErrorInvalidConfiguration;
    const dim3 grid(static_cast<unsigned>(blocks)), block(kThreads);
    if (!call.gradient) return launch(forward<T, three_quarters>, grid, block, 0, stream, call, run);
    const size_t shared = 2 * static_cast<size_t>(rows) * kThreads * sizeof(T);
    if (shared > kMostShared)
        return launch(backward_of_wide_windows<T, three_quarters>, grid, block, 0, stream, call, run);
    return launch(backward<T, three_quarters>, grid, block, shared, stream, call, run);
}

template <typename T>
cudaError_t run(const LrnCall& call, cudaStream_t stream) {
    if (call.images == 0 || call.channels == 0 || call.places == 0) return cudaSuccess;
    return call.beta == 0.75 ? run_power<T, true>(call, stream) : run_power<T, false>(call, stream);
}

}  // namespace

const CudaLrnKernels lrn = {run<float>, run<double>};

}  // namespace cuda
}  // namespace engine
