// Rounding on a GPU: the functions of csrc/rounding.h, their arrays in the device's memory. Kernels allocate nothing and
// never wait; step and exponent are read when they run.
#pragma once

#include "../../rounding.h"
#include "../device.h"

namespace engine {

struct CudaRoundingKernels {
    cudaError_t (*fixed_float)(const RoundingCall&, cudaStream_t);
    cudaError_t (*fixed_double)(const RoundingCall&, cudaStream_t);
    cudaError_t (*bfloat16)(const RoundingCall&, cudaStream_t);
    cudaError_t (*float16)(const RoundingCall&, cudaStream_t);
    cudaError_t (*add_bfloat16)(const RoundingCall&, cudaStream_t);
    cudaError_t (*add_compensated)(const RoundingCall&, cudaStream_t);
};

namespace cuda {
extern const CudaRoundingKernels rounding;
}

}  // namespace engine
