// The first step of winograd_weight.cpp: patches of a picture, transformed and stored in panels.
#pragma once

#include "../../simd/winograd_transform.h"

namespace engine::ENGINE_ISA {
namespace {

// Transformed values are stored in panels of two vectors of channels (or filters): [patches][kPanelWidth].
template <typename T>
constexpr int kPanelWidth = 2 * kLanes<T>;

// Transforms one vector of channels of one patch: `rows` x `columns` pixels, of which those outside the picture are
// zero. The element e of the result goes to to[e * stride].
template <typename T, int tile_h, int tile_w, bool gradient>
struct Patch {
    // Along an axis where the filter is 1 wide there is nothing to transform: F(1, 1).
    static constexpr int weight_h = tile_h == 1 ? 1 : 3, weight_w = tile_w == 1 ? 1 : 3;
    static constexpr int size_h = weight_h + tile_h - 1, size_w = weight_w + tile_w - 1;
    static constexpr int rows = gradient ? tile_h : size_h, columns = gradient ? tile_w : size_w;

    const T* picture;
    int64_t height, width, channels;

    template <int weight, int tile>
    static ENGINE_INLINE void along_axis(const Vector<T>* in, Vector<T>* out, int out_stride) {
        if constexpr (gradient)
            transform_filter<weight, tile, T>(in, 1, out, out_stride);
        else
            transform_input<weight, tile, T>(in, 1, out, out_stride);
    }

    template <typename Load>
    static ENGINE_INLINE void transform(Load load_pixel, T* to, int64_t stride) {
        Vector<T> half_done[size_h * size_w];
#pragma GCC unroll 8
        for (int column = 0; column < columns; ++column) {
            Vector<T> in[rows];
#pragma GCC unroll 8
            for (int row = 0; row < rows; ++row) in[row] = load_pixel(row, column);
            along_axis<weight_h, tile_h>(in, half_done + column, size_w);
        }
#pragma GCC unroll 8
        for (int row = 0; row < size_h; ++row) {
            Vector<T> out[size_w];
            along_axis<weight_w, tile_w>(half_done + row * size_w, out, 1);
#pragma GCC unroll 8
            for (int column = 0; column < size_w; ++column) store(to + (row * size_w + column) * stride, out[column]);
        }
    }

    // top, left: the patch's first pixel, which may lie outside; the vector's first channel and how many are left.
    void operator()(int64_t top, int64_t left, int64_t channel, int64_t count, T* to, int64_t stride) const {
        if (top >= 0 && left >= 0 && top + rows <= height && left + columns <= width && count >= kLanes<T>) {
            const T* from = picture + (top * width + left) * channels + channel;
            const int64_t row_stride = width * channels;
            const uintptr_t ahead = static_cast<uintptr_t>(tile_w * channels) * sizeof(T);
            transform(
                [&](int row, int column) {
                    const T* pixel = from + row * row_stride + column * channels;
                    if (column >= columns - tile_w)
                        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(pixel) + ahead));
                    return load(pixel);
                },
                to, stride);
        } else {
            transform(
                [&](int row, int column) {
                    const int64_t y = top + row, x = left + column;
                    if (y < 0 || x < 0 || y >= height || x >= width) return Vector<T>{};
                    return load_some(picture + (y * width + x) * channels + channel, count);
                },
                to, stride);
        }
    }

    // All channels of a patch, into place `block` of the panels, which hold `portion` blocks.
    void all_channels(int64_t top, int64_t left, int64_t groups, int64_t portion, int64_t block, T* panels,
                      int64_t stride) const {
        const int64_t group_channels = channels / groups;
        T* panel = panels + block * kPanelWidth<T>;
        for (int64_t group = 0; group < groups; ++group)
            for (int64_t c = 0; c < group_channels; c += kPanelWidth<T>, panel += portion * kPanelWidth<T>)
                for (int64_t lane = 0; lane < kPanelWidth<T> && c + lane < group_channels; lane += kLanes<T>)
                    (*this)(top, left, group * group_channels + c + lane, group_channels - c - lane, panel + lane,
                            stride);
    }
};

}  // namespace
}  // namespace engine::ENGINE_ISA
