// One axis (height or width) of a depthwise convolution, in the single form that all three directions use.
//
// The gradient of the images is itself a sum of products: `stride` interleaved convolutions of stride 1 per axis (the
// phases), each with every stride-th tap, taken backwards. No multiplication by a zero that a stride would insert.
#pragma once

#include "../../simd/vector.h"
#include "../convolution.h"

namespace engine::ENGINE_ISA {
namespace {

struct Range {
    int64_t first, last;  // without `last`
};

// Output q lies at out_first + q * out_step; its tap t reads the input at in_first + q * in_step + t * dilation (zero
// outside of 0..inputs) and the weight at tap_first + t * tap_step.
struct Axis {
    int64_t outputs, out_first, out_step;
    int64_t inputs, in_first, in_step;
    int64_t taps, tap_first, tap_step, dilation;
};

// What the three directions are made from, of height or of width.
struct AxisShape {
    int64_t image, kernel, stride, padding, dilation, out;
};
inline AxisShape rows_of(const ConvShape& s) {
    return {s.height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.out_h};
}
inline AxisShape columns_of(const ConvShape& s) {
    return {s.width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.out_w};
}

inline Axis forward_axis(const AxisShape& s) {
    return {s.out, 0, 1, s.image, -s.padding, s.stride, s.kernel, 0, 1, s.dilation};
}

inline int64_t greatest_common_divisor(int64_t a, int64_t b) {
    while (b) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// The places phase, phase + stride, ... of the image: place h takes gradient y by tap i where h = y*s - p + i*d.
inline Axis backward_axis(const AxisShape& s, int64_t phase) {
    const int64_t common = greatest_common_divisor(s.stride, s.dilation);
    const int64_t tap_step = s.stride / common, dilation = s.dilation / common;
    int64_t tap = 0;
    while (tap < s.kernel && tap < tap_step && (phase + s.padding - tap * s.dilation) % s.stride != 0) ++tap;
    const bool any = tap < s.kernel && tap < tap_step;
    const int64_t taps = any ? ceil_div(s.kernel - tap, tap_step) : 0;
    const int64_t outputs = phase < s.image ? ceil_div(s.image - phase, s.stride) : 0;
    if (!any) return {outputs, phase, s.stride, s.out, 0, 1, 0, 0, 0, 1};
    const int64_t nearest = (phase + s.padding - tap * s.dilation) / s.stride;  // no rest, so negative ones are right
    return {outputs, phase, s.stride,
            s.out,   nearest - (taps - 1) * dilation, 1,
            taps,    tap + (taps - 1) * tap_step,     -tap_step, dilation};
}

inline int64_t phases_of(const AxisShape& s, Direction direction) {
    return direction == Direction::backward_input ? smaller(s.stride, s.image) : 1;
}
inline Axis axis_of(const AxisShape& s, Direction direction, int64_t phase) {
    return direction == Direction::backward_input ? backward_axis(s, phase) : forward_axis(s);
}

// Positions of the input from the first that `outputs` neighbouring outputs read to the last.
inline int64_t reach(const Axis& axis, int64_t outputs) {
    return (outputs - 1) * axis.in_step + larger(0, axis.taps - 1) * axis.dilation + 1;
}

// The taps of output q that read inside of the input.
inline Range taps_inside(const Axis& axis, int64_t q) {
    const int64_t start = axis.in_first + q * axis.in_step, left = axis.inputs - start;
    const int64_t first = start >= 0 ? 0 : smaller(axis.taps, ceil_div(-start, axis.dilation));
    const int64_t last = left <= 0 ? 0 : smaller(axis.taps, ceil_div(left, axis.dilation));
    return {first, larger(first, last)};
}

// The outputs all of whose taps read inside of the input.
inline Range outputs_inside(const Axis& axis) {
    const int64_t first = axis.in_first >= 0 ? 0 : ceil_div(-axis.in_first, axis.in_step);
    const int64_t room = axis.inputs - axis.in_first - reach(axis, 1) + 1;
    const int64_t last = room <= 0 ? 0 : smaller(axis.outputs, ceil_div(room, axis.in_step));
    return {smaller(first, axis.outputs), larger(smaller(first, axis.outputs), last)};
}

}  // namespace
}  // namespace engine::ENGINE_ISA
