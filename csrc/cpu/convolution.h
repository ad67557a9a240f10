// Convolution on the CPU, as every algorithm of csrc/cpu/conv offers it. Kernels know neither Python nor torch, allocate
// nothing, and give the same bits for any number of threads.
#pragma once

#include "../convolution.h"

namespace engine {

// One call. Sizes are at least 1, but for `batch`, which the caller never passes as 0 either.
//   forward          images x weight (+ bias)       -> output
//   backward_input   gradient of output x weight    -> gradient of images
//   backward_weight  gradient of output x images    -> gradient of weight
struct ConvCall {
    ConvShape shape;
    Direction direction;
    const void* left;      // images; in the backward directions the gradient of the output
    const void* right;     // weight; in backward_weight the images
    const void* bias;      // forward: [filters], or null
    const void* prepared;  // forward: what prepare() wrote, and then `right` is not read; or null
    void* out;             // written everywhere; its content before the call does not matter
    void* workspace;       // as many bytes as workspace() says, aligned to 64, with any content
    int threads;
};

struct Algorithm {
    const char* name;
    // Null if the direction of this shape can be computed, else why not: a phrase such as "the stride is not 1".
    const char* (*refuses)(const ConvShape&, Direction);
    // Bytes of temporary memory of a call, for elements of `size` bytes (4: float, 8: double); `prepared`: of a
    // forward call that is given a prepared weight.
    int64_t (*workspace)(const ConvShape&, Direction, int size, int threads, bool prepared);
    void (*run_float)(const ConvCall&);
    void (*run_double)(const ConvCall&);
    // Weights in the algorithm's own form, for forward calls of one shape; all three null where it has none.
    int64_t (*prepared_bytes)(const ConvShape&, int size);
    void (*prepare_float)(const ConvShape&, const void* weight, void* prepared, int threads);
    void (*prepare_double)(const ConvShape&, const void* weight, void* prepared, int threads);
    // Multiplications that are done for nothing, per useful one of the direct method: 3 for a stride of 2 in both
    // directions computed at every place; null: none.
    double (*waste)(const ConvShape&);
};

}  // namespace engine
