// What the kernels of csrc/cuda are written against: CUDA C++, or with ENGINE_CUDA_ON_HOST defined the same words for
// any C++ compiler (host/cuda_on_host.h), so that the very same .cu files are tested without a GPU.
//
// A kernel is a static or anonymous __global__ function template or function that takes values and raw pointers. It is
// launched with `launch`, and all its shared memory is one struct or array that it asks for with `shared_memory`:
//
//   struct Tiles { float a[16][128], b[16][128]; };
//   __global__ void kernel(const float* in, float* out) {
//       Tiles& tiles = shared_memory<Tiles>();
//       ...
//       block_barrier();
//   }
//   launch(kernel, grid, block, sizeof(Tiles), stream, in, out);
//
// Written so, memory beyond what was asked for is an error that the address sanitizer sees on the host, and the content
// before the first store is NaN there. Words of CUDA that may be used: threadIdx, blockIdx, blockDim, gridDim, dim3,
// float2, float4, double2, warp shuffles with the full mask (__shfl_sync, __shfl_xor_sync, __shfl_down_sync), atomicAdd on
// int (never on floats: results are the same bits in any order), __ldg, __launch_bounds__, __restrict__, fma; and
// ENGINE_UNROLL before a loop whose count is a constant.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define ENGINE_UNROLL _Pragma("unroll")
#else
#define ENGINE_UNROLL _Pragma("GCC unroll 64")
#endif

#if defined(ENGINE_CUDA_ON_HOST)

#include "host/cuda_on_host.h"

#else

#include <cuda_runtime.h>

#if defined(__CUDACC__)  // not where a C++ compiler only wants the types

#define block_barrier() __syncthreads()
#define warp_barrier() __syncwarp()

namespace engine {

template <typename T>
__device__ __forceinline__ T& shared_memory() {
    extern __shared__ __align__(16) unsigned char engine_shared_memory[];
    return *reinterpret_cast<T*>(engine_shared_memory);
}

// What is wrong with the last launches, or cudaSuccess. Beyond 48 KiB a kernel must be allowed its shared memory first.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
    if (shared_bytes > (48u << 10)) {
        const cudaError_t refused = cudaFuncSetAttribute(
            reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
        if (refused != cudaSuccess) {
            (void)cudaGetLastError();  // or the next launch would be told of it as well
            return refused;
        }
    }
    kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
    return cudaGetLastError();
}

}  // namespace engine

#endif
#endif
