// Kernels of binary networks for CPUs, and which instruction sets they were compiled for; see csrc/binary.h.
#pragma once

#include "../binary.h"

namespace engine {

constexpr int64_t kBlock = 60;     // rows that are gathered at a time, to stay in the caches while all panels pass
constexpr int kMostThreads = 256;  // of a call

struct BinaryKernels {
    const char* name;     // "vpopcntdq", "avx512", "avx2" or "baseline"
    bool (*supported)();  // by this machine

    // Bits x bits, and bytes (0 to 255) x bits. workspace: of workspace_bytes().
    void (*convolve)(const BinaryConvolution& shape, bool bytes, const void* activations, const uint32_t* panels,
                     const BinaryOutput& out, void* workspace, int threads);

    // The bits of sums [rows][filters], as BinaryOutput says; out.sums is not used.
    void (*threshold)(const int32_t* sums, int64_t rows, int64_t filters, const BinaryOutput& out, int threads);

    // The signs of floats [rows][length]: +1 for 0 and -0 too, -1 for NaN.
    void (*pack)(const float* values, int64_t rows, int64_t length, uint32_t* bits, int threads);
};

// The bytes that convolve() needs besides.
int64_t workspace_bytes(const BinaryConvolution& shape, bool bytes, int threads);

// All that were compiled, the best first; the last is "baseline", which every machine of this kind has. Ends with a
// null name.
const BinaryKernels* const* binary_kernels();

}  // namespace engine
