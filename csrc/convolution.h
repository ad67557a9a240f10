// What one convolution is, on any device. Cross-correlation, as the field defines convolution:
//   out(n, k, y, x) = sum over c, i, j of images(n, c, y*s - p + i*d, x*s - p + j*d) * weight(k, c, i, j).
//
// All arrays are dense. Images, outputs and their gradients are NHWC, [batch][height][width][channels]; a weight is
// [filters][kernel_h][kernel_w][channels / groups].
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

// Null if the sizes make a convolution with at least one image and one output, and small enough to count its elements
// and bytes, else what is wrong with them.
const char* mistake(const ConvShape& shape);

}  // namespace engine
