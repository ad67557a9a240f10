// The pass of csrc/images.h over images that lie in a GPU's memory, for who knows neither kernels nor their launches.
//
// The host checks a pass and packs what it says of each image into one block of bytes; whoever calls copies that block
// to the GPU and has the pass run. Nothing is allocated here, nothing waits for the GPU, and results are the same bits
// each time.
#pragma once

#include "../images.h"
#include "device.h"

namespace engine {

// Where images of one size are on the GPU: pixel (y, x, c) of image i of a pass is at
// index[i] * image + y * row + x * column + c * channel; without an index at i * image + ...
struct ImageBatch {
    const uint8_t* memory;
    int64_t image, row, column, channel;
    const int64_t* index;  // on the GPU too, or null
};

// The arrays of a pass are the host's in all of these, and at least one image is in it.
struct CudaImages {
    // Null if images of this size can be transformed so, else why not, as a phrase; the rest is only for such a pass.
    const char* (*mistake)(const ImagePass& pass, int64_t height, int64_t width);
    int64_t (*packed_bytes)(const ImagePass& pass);
    // Writes all of `packed`, which is aligned to 8 bytes.
    void (*pack)(const ImagePass& pass, void* packed);
    // Launches kernels that write all of `out`: one, and one more for each mean of an image that must be known before.
    // packed: what pack() wrote. copied: the same on the GPU, which the kernels complete. Returns an error of a launch,
    // or cudaSuccess.
    cudaError_t (*run)(const ImagePass& pass, const ImageBatch& batch, const void* packed, void* copied, void* out,
                       cudaStream_t stream);
};

extern const CudaImages cuda_images;

}  // namespace engine
