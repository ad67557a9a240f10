// One axis (height or width) of a depthwise convolution, in the single form that all three directions use; compare
// csrc/cpu/conv/depthwise_axis.h.
//
// Two things are told apart. A *phase*: the gradient of the images is `stride` interleaved convolutions of stride 1 per
// axis, each with every stride-th tap, taken backwards. And the *grid* of an axis: outputs `spacing` apart and taps
// `tap_spacing` apart read inputs that are `distance` apart, the least common multiple of stride and dilation. On such a
// grid every stride and dilation looks like a plain convolution, whose neighbouring outputs share their inputs.
#pragma once

#include "axis.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kLanes = 32;  // channels of a warp, one for each thread

// What a kernel is told of an axis.
struct AxisShape : AxisSizes {
    int spacing, tap_spacing, distance;  // the grid
    int strips;                          // runs of outputs, each by one thread, that cover the axis in every phase
    int phases;
};

// A strip of outputs: first, first + spacing, ...; those from axis.outputs on are not there.
__host__ __device__ inline int first_output(const AxisShape& s, int width, int strip) {
    return strip % s.spacing + s.spacing * width * (strip / s.spacing);
}

// Taps first, first + tap_spacing, ... (count of them): at most `most` neighbours on the grid.
struct Taps {
    int first, count;
};
__host__ __device__ inline int tap_parts(const AxisShape& s, const Axis& axis, int most) {
    return s.tap_spacing * ceil_div(ceil_div(axis.taps, s.tap_spacing), most);
}
__host__ __device__ inline Taps tap_part(const AxisShape& s, const Axis& axis, int most, int part) {
    const int first = part % s.tap_spacing + s.tap_spacing * most * (part / s.tap_spacing);
    return {first, first < axis.taps ? smaller(most, ceil_div(axis.taps - first, s.tap_spacing)) : 0};
}

// The input that output `output` reads by tap `tap`.
__host__ __device__ inline int input_of(const Axis& axis, int output, int tap) {
    return axis.in_first + output * axis.in_step + tap * axis.dilation;
}

// Host only from here on.

// An axis of a direction, `width` outputs to a strip. `step`: the stride that the kernel is compiled for, with dilation
// 1; or 1 for kernels that walk on the grid.
inline AxisShape axis_shape(Direction direction, int step, int width, int64_t image, int64_t kernel, int64_t stride,
                            int64_t padding, int64_t dilation, int64_t out) {
    const bool backward = direction == Direction::backward_input;
    const AxisSizes sizes = axis_sizes(image, kernel, stride, padding, dilation, out);
    const int64_t common = sizes.common;
    dilation = sizes.dilation;
    const int64_t in_step = backward ? 1 : stride;
    const int64_t multiple = backward ? dilation / common : stride / common * dilation;
    const int phases = backward ? phases_of(sizes) : 1;
    const int64_t outputs = backward ? (image + stride - 1) / stride : out;
    const int64_t tap_dilation = backward ? dilation / common : dilation;

    // Where neighbours on the grid are further apart than there are outputs or taps, each is alone.
    const auto at_most = [](int64_t value, int64_t most) { return int(value < most ? value : most); };
    const int spacing = at_most(multiple / in_step, outputs);
    const int tap_spacing = at_most(multiple / step / tap_dilation, kernel);
    const int distance = at_most(multiple / step, kFarthest);
    const int strips = spacing * ceil_div(ceil_div(int(outputs), spacing), width);
    return {sizes, spacing, tap_spacing, distance, strips, phases};
}

}  // namespace
}  // namespace cuda
}  // namespace engine
