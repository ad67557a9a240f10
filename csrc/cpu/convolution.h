// Convolution on the CPU, as every algorithm of csrc/cpu/conv offers it. Cross-correlation, as the field defines
// convolution: out(n, k, y, x) = sum over c, i, j of images(n, c, y*s - p + i*d, x*s - p + j*d) * weight(k, c, i, j).
//
// All arrays are dense. Images, outputs and their gradients are NHWC, [batch][height][width][channels]; a weight is
// [filters][kernel_h][kernel_w][channels / groups]. Kernels know neither Python nor torch, allocate nothing, and give
// the same bits for any number of threads.
#pragma once

#include <cstdint>

namespace engine {

enum class Direction : int { forward = 0, backward_input = 1, backward_weight = 2 };

struct ConvShape {
    int64_t batch, channels, height, width;
    int64_t filters, kernel_h, kernel_w;
    int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
    int64_t out_h, out_w;  // follow from the rest; given so that nobody has to compute them again
};

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
