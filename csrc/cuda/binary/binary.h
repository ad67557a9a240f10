// Networks of one bit on a GPU: the functions of csrc/binary.h, bit for bit, their arrays in the device's memory.
// Kernels allocate nothing and never wait.
//
// Weights are laid out otherwise than on the CPU: a filter after the other, each a row of kRowWords words or a multiple
// of that, zeros at its end:
//   of bits   the words of csrc/binary.h for [kernel_h][kernel_w][words of the channels]
//   of bytes  [kernel_h][kernel_w][channels], 1 or -1 each
#pragma once

#include "../../binary.h"
#include "../device.h"

namespace engine {

constexpr int kRowWords = 16;

struct CudaBinaryWeights {
    const void* rows;            // at a multiple of 16 bytes
    const int32_t* minus_total;  // [filters], of bits alone: what the filter's weights add up to, negative
};

struct CudaBinaryKernels {
    // Why a convolution that csrc/binary.h has no mistake in cannot be computed, or null.
    const char* (*refuses)(const BinaryConvolution& shape, bool bytes);

    // Bits x bits, and bytes (0 to 255) x bits.
    cudaError_t (*convolve)(const BinaryConvolution& shape, bool bytes, const void* activations,
                            const CudaBinaryWeights& weights, const BinaryOutput& out, cudaStream_t stream);

    // The bits of sums [rows][filters], as BinaryOutput says; out.sums is not used.
    cudaError_t (*threshold)(const int32_t* sums, int64_t rows, int64_t filters, const BinaryOutput& out,
                             cudaStream_t stream);

    // The signs of floats [rows][length]: +1 for 0 and -0 too, -1 for NaN.
    cudaError_t (*pack)(const float* values, int64_t rows, int64_t length, uint32_t* bits, cudaStream_t stream);
};

namespace cuda {
extern const CudaBinaryKernels binary;
}

}  // namespace engine
