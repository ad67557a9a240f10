// What forward and backward_input have in common: both correlate an NHWC array, the source, with a kernel.
//
// For a stride of 1 the gradient of the images is the correlation of the output's gradient with the kernel turned
// round. For a stride s the pixels y = r + s * q of one remainder r meet only the taps i with (r + p - i * d)
// divisible by s, so each remainder is a small correlation of stride 1 of its own, and no product with an inserted
// zero is ever computed (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4,
// describes the one with the zeros).
#pragma once

#include "../../simd/vector.h"
#include "../convolution.h"

namespace engine::ENGINE_ISA {
namespace {

// One axis of a correlation. Result q is the sum over its taps t of source[q * stride + offset + t * dilation] times
// the kernel's element first_tap + t * tap_step; it is written to place first + q * step of the target.
struct Axis {
    int64_t results, stride, offset;
    int64_t taps, dilation;  // taps: none, for pixels that no output ever met; their gradient is zero
    int64_t source_size;     // beyond it lie zeros
    int64_t target_size, first, step;
    int64_t first_tap, tap_step;

    // The results [inside_begin, inside_end) are those of which no tap lies beyond the source.
    int64_t inside_begin() const { return ceil_div(larger(0, -offset), stride); }
    int64_t inside_end() const {
        return smaller(results, ceil_div(larger(0, source_size - offset - (taps - 1) * dilation), stride));
    }
    bool dense() const { return taps == 1 && stride == 1 && offset == 0 && step == 1 && results == source_size; }
};

struct Correlation {
    Axis y, x;
    int64_t batch, groups;
    int64_t source_channels, target_channels;  // of one group

    int64_t results() const { return batch * y.results * x.results; }
    // Whether result number r reads only the source's pixel number r, and is the target's pixel number r: a kernel of
    // one tap.
    bool dense() const { return y.dense() && x.dense(); }
    // Products of one result, in the order [tap y][tap x][source channel].
    int64_t depth() const { return y.taps * x.taps * source_channels; }
};

inline Axis forward_axis(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t padding,
                         int64_t dilation) {
    return {out, stride, -padding, kernel, dilation, size, out, 0, 1, 0, 1};
}

inline Correlation forward_correlation(const ConvShape& s) {
    return {forward_axis(s.height, s.out_h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h),
            forward_axis(s.width, s.out_w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w),
            s.batch,
            s.groups,
            s.channels / s.groups,
            s.filters / s.groups};
}

// The pixels with the given remainder modulo the stride, in an image of `size` pixels.
inline Axis backward_axis(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t padding,
                          int64_t dilation, int64_t remainder) {
    const int64_t results = larger(0, ceil_div(size - remainder, stride));
    int64_t taps = 0, last_tap = 0, period = 1;  // the taps that hit an output: last_tap and every `period` before
    for (int64_t tap = 0; tap < kernel; ++tap) {
        if ((remainder + padding - tap * dilation) % stride != 0) continue;
        if (taps > 0) period = tap - last_tap;
        last_tap = tap;
        ++taps;
    }
    const int64_t offset = (remainder + padding - last_tap * dilation) / stride;
    return {results, 1, offset, taps, period * dilation / stride, out, size, remainder, stride, last_tap, -period};
}

inline Correlation backward_correlation(const ConvShape& s, int64_t remainder_h, int64_t remainder_w) {
    return {backward_axis(s.height, s.out_h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, remainder_h),
            backward_axis(s.width, s.out_w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, remainder_w),
            s.batch,
            s.groups,
            s.filters / s.groups,
            s.channels / s.groups};
}

// A position among a correlation's results, counted image by image and row by row.
struct Position {
    int64_t image, y, x;
};

inline Position position(const Correlation& c, int64_t index) {
    const int64_t row = index / c.x.results;
    return {row / c.y.results, row % c.y.results, index % c.x.results};
}

ENGINE_INLINE void advance(const Correlation& c, Position& at) {
    if (++at.x < c.x.results) return;
    at.x = 0;
    if (++at.y < c.y.results) return;
    at.y = 0;
    ++at.image;
}

// Where the first channel of the group lies in the target.
ENGINE_INLINE int64_t target_offset(const Correlation& c, const Position& at, int64_t group) {
    const int64_t y = c.y.first + at.y * c.y.step, x = c.x.first + at.x * c.x.step;
    const int64_t pixel = (at.image * c.y.target_size + y) * c.x.target_size + x;
    return (pixel * c.groups + group) * c.target_channels;
}

}  // namespace
}  // namespace engine::ENGINE_ISA
