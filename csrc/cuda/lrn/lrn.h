// Local response normalisation on a GPU: the calls of csrc/lrn.h, their arrays in the device's memory and without
// workspace. Kernels allocate nothing and never wait.
#pragma once

#include "../../lrn.h"
#include "../device.h"

namespace engine {

struct CudaLrnKernels {
    cudaError_t (*run_float)(const LrnCall&, cudaStream_t);
    cudaError_t (*run_double)(const LrnCall&, cudaStream_t);
};

namespace cuda {
extern const CudaLrnKernels lrn;
}

}  // namespace engine
