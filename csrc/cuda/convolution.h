// Convolution on a GPU, as every algorithm of csrc/cuda offers it: the arrays of csrc/convolution.h in device memory.
// Kernels know neither Python nor torch, allocate nothing, never wait for the device, and give the same bits each time.
#pragma once

#include "../convolution.h"
#include "device.h"

namespace engine {

// Large work is done a portion at a time, so that memory stays bounded and what one step writes the next one finds in a
// cache. Tests define ENGINE_SMALL_PORTIONS, and small shapes have many portions.
#if defined(ENGINE_SMALL_PORTIONS)
constexpr int64_t portion(int64_t, int64_t in_tests) { return in_tests; }
#else
constexpr int64_t portion(int64_t usual, int64_t) { return usual; }
#endif

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One call. Sizes are at least 1, batch too.
//   forward          images x weight (+ bias)       -> output
//   backward_input   gradient of output x weight    -> gradient of images
//   backward_weight  gradient of output x images    -> gradient of weight
struct CudaCall {
    ConvShape shape;
    Direction direction;
    const void* left;      // images; in the backward directions the gradient of the output
    const void* right;     // weight; in backward_weight the images
    const void* bias;      // forward: [filters], or null
    const void* prepared;  // forward: what prepare() wrote, and then `right` is not read; or null
    void* out;             // written everywhere; its content before the call does not matter
    void* workspace;       // as many bytes as workspace() says, aligned to 256, with any content
    cudaStream_t stream;
};

struct CudaAlgorithm {
    const char* name;
    // Null if the direction of this shape can be computed, else why not: a phrase such as "the stride is not 1".
    const char* (*refuses)(const ConvShape&, Direction);
    // Bytes of temporary memory of a call, for elements of `size` bytes (4: float, 8: double); `prepared`: of a
    // forward call that is given a prepared weight.
    int64_t (*workspace)(const ConvShape&, Direction, int size, bool prepared);
    // Launches kernels; an error of a launch, or cudaSuccess.
    cudaError_t (*run_float)(const CudaCall&);
    cudaError_t (*run_double)(const CudaCall&);
    // Weights in the algorithm's own form, for forward calls of one shape; all three null where it has none.
    int64_t (*prepared_bytes)(const ConvShape&, int size);
    cudaError_t (*prepare_float)(const ConvShape&, const void* weight, void* prepared, cudaStream_t stream);
    cudaError_t (*prepare_double)(const ConvShape&, const void* weight, void* prepared, cudaStream_t stream);
    // Multiplications that are done for nothing, per useful one of the direct method; null: none.
    double (*waste)(const ConvShape&);
};

namespace cuda {
extern const CudaAlgorithm im2col, implicit, winograd2, winograd4, fft, depthwise;
}

// All of them, for who asks by name; ends with null.
const CudaAlgorithm* const* cuda_algorithms();

}  // namespace engine
