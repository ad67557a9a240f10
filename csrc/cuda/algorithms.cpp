#include "convolution.h"

namespace engine {

const CudaAlgorithm* const* cuda_algorithms() {
    static constexpr const CudaAlgorithm* kAll[] = {&cuda::im2col,    &cuda::implicit, &cuda::winograd2,
                                                    &cuda::winograd4, &cuda::fft,      &cuda::depthwise, nullptr};
    return kAll;
}

}  // namespace engine
