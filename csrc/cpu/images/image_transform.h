// The pass over pixels that lie in memory, once for each instruction set.
#pragma once

#include <cstdint>

#include "../../images.h"

namespace engine {

struct ImageTransform {
    // Bytes of workspace that `run` needs for an image whose windows read at most so many rows and columns.
    int64_t (*workspace)(const ImagePass& pass, int64_t rows, int64_t columns);
    // Transforms one image: number `image` of the pass, whose axes are given apart, because a decoder may have given
    // only a part of it, or a smaller one. `out` is where this image's output begins.
    void (*run)(const ImagePass& pass, int64_t image, const Axis axes[2], const Pixels& pixels, void* out,
                void* workspace);
};

}  // namespace engine
