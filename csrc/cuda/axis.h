// One axis (height or width) of a convolution, in the single form that the directions share: outputs whose taps lie at
// even distances in what is read.
//
// The gradient of the images along an axis of stride s is s interleaved convolutions of stride 1, each with every s-th
// tap, taken backwards: its *phases*. The forward direction has one.
#pragma once

#include "convolution.h"

namespace engine {
namespace cuda {
namespace {

__host__ __device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ inline int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ inline int larger(int a, int b) { return a > b ? a : b; }

// What a kernel is told of an axis.
struct AxisSizes {
    int image, kernel, stride, padding, dilation, out;
    int common;  // greatest common divisor of stride and dilation
};

// Output q lies at out_first + q * out_step; its tap t reads the input at in_first + q * in_step + t * dilation (zero
// outside of 0..inputs) and the weight at tap_first + t * tap_step.
struct Axis {
    int outputs, out_first, out_step;
    int inputs, in_first, in_step;
    int taps, tap_first, tap_step, dilation;
};

__host__ __device__ inline Axis forward_axis(const AxisSizes& s) {
    return {s.out, 0, 1, s.image, -s.padding, s.stride, s.kernel, 0, 1, s.dilation};
}

// The places phase, phase + stride, ... of the image: place h takes gradient y by tap i where h = y*s - p + i*d.
__host__ __device__ inline Axis backward_axis(const AxisSizes& s, int phase) {
    const int tap_step = s.stride / s.common, dilation = s.dilation / s.common;
    const int outputs = phase < s.image ? ceil_div(s.image - phase, s.stride) : 0;
    int tap = 0;
    while (tap < s.kernel && tap < tap_step && (phase + s.padding - tap * s.dilation) % s.stride != 0) ++tap;
    const bool any = tap < s.kernel && tap < tap_step;
    if (!any) return {outputs, phase, s.stride, s.out, 0, 1, 0, 0, 0, dilation};
    const int taps = ceil_div(s.kernel - tap, tap_step);
    const int nearest = (phase + s.padding - tap * s.dilation) / s.stride;  // no rest, so negative ones are right
    return {outputs, phase, s.stride,
            s.out,   nearest - (taps - 1) * dilation, 1,
            taps,    tap + (taps - 1) * tap_step,     -tap_step, dilation};
}

// Host only from here on.

inline int64_t greatest_common_divisor(int64_t a, int64_t b) {
    while (b) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

constexpr int64_t kFarthest = int64_t{1} << 25;  // places of an image with its padding; further than that is nowhere

// Null, or why the places of a shape do not fit into the axes' numbers.
inline const char* too_far(const ConvShape& s) {
    if (s.height + 2 * s.padding_h > kFarthest || s.width + 2 * s.padding_w > kFarthest)
        return "an image with its padding is too large for 32-bit places";
    return nullptr;
}

inline AxisSizes axis_sizes(int64_t image, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                            int64_t out) {
    if (kernel == 1) dilation = 1;  // there is nothing to keep apart
    const int64_t common = greatest_common_divisor(stride, dilation);
    return {int(image), int(kernel), int(stride), int(padding), int(dilation), int(out), int(common)};
}

// How many phases the gradient of the images has.
inline int phases_of(const AxisSizes& s) { return smaller(s.stride, s.image); }

}  // namespace
}  // namespace cuda
}  // namespace engine
