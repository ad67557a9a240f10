// A convolution's arrays as the factors and the result of a matrix product that never exists in memory: which number of
// the images stands in which row and column is computed as it is read.
//
//   forward          output (pixel, filter)      = patches (pixel, tap and channel) x weight
//   backward_input   images (pixel, channel)     = patches of the gradient (pixel, tap and filter) x weight
//   backward_weight  weight (filter, tap and channel) = gradient (filter, pixel) x patches (tap and channel, pixel)
//
// Channels come last in memory, so patches are read four numbers at a time where the channels of a group are a multiple
// of four. With a stride the gradient of the images is computed phase by phase (axis.h), each with its own taps, so
// nothing is multiplied by the zeros between the places of the gradient.
// The GPU's counterpart of csrc/cpu/conv/implicit.cpp; Chetlur and others, "cuDNN: Efficient primitives for deep
// learning", 2014.
#pragma once

#include "axis.h"
#include "divider.h"
#include "tile_product.h"

namespace engine {
namespace cuda {
namespace {

// What forward and backward_input have in common: pixels of the result, each with the places that its taps read.
// A batch of the product is a phase and a group: phase_down, phase_across, group.
struct Window {
    AxisSizes rows, columns;
    int pictures, groups;
    bool backward;

    Window(const ConvShape& s, Direction direction)
        : rows(axis_sizes(s.height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.out_h)),
          columns(axis_sizes(s.width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.out_w)),
          pictures(int(s.batch)),
          groups(int(s.groups)),
          backward(direction == Direction::backward_input) {}

    // Numbers of which a phase has at most so many.
    int most_down() const { return backward ? ceil_div(rows.image, rows.stride) : rows.out; }
    int most_across() const { return backward ? ceil_div(columns.image, columns.stride) : columns.out; }
    static int most_taps(const AxisSizes& axis, bool backward) {
        return backward ? ceil_div(axis.kernel, axis.stride / axis.common) : axis.kernel;
    }
    int64_t most_pixels() const { return int64_t{pictures} * most_down() * most_across(); }
    int64_t most_taps() const { return int64_t{most_taps(rows, backward)} * most_taps(columns, backward); }
    int phases_across() const { return backward ? phases_of(columns) : 1; }
    int64_t batches() const { return int64_t{backward ? phases_of(rows) : 1} * phases_across() * groups; }
};

// A window's phase and group.
struct View {
    Axis rows, columns;
    int group;
    Divider by_across, by_down;

    View() = default;
    __device__ View(const Window& window, int64_t batch) {
        const int phase = int(batch) / window.groups;
        group = int(batch) - phase * window.groups;
        const int across = window.backward ? smaller(window.columns.stride, window.columns.image) : 1;
        const int down = phase / across;
        rows = window.backward ? backward_axis(window.rows, down) : forward_axis(window.rows);
        columns = window.backward ? backward_axis(window.columns, phase - down * across) : forward_axis(window.columns);
        by_across = Divider(larger(columns.outputs, 1));
        by_down = Divider(larger(rows.outputs, 1));
    }

    // A pixel of the result, and where: the coordinates of a phase.
    struct Pixel {
        int picture, y, x;
    };
    __device__ int pixels(int pictures) const { return pictures * rows.outputs * columns.outputs; }
    __device__ Pixel pixel(int number) const {
        const int line = by_across.quotient(number), picture = by_down.quotient(line);
        return {picture, by_down.rest(line, picture), by_across.rest(number, line)};
    }
};

// The left factor of forward and backward_input: a row for each pixel of the result, with all that its taps read.
template <typename T, bool quads>
struct Patches {
    static constexpr bool along_depth = true;
    const T* data;  // images, or in backward_input the gradient: NHWC
    Window window;
    int channels;  // of one group of `data`
    Divider by_channels;
    View view = {};
    Divider by_taps = {};
    int64_t depth = 0;

    Patches(const T* data, const Window& window, int channels)
        : data(data), window(window), channels(channels), by_channels(channels) {}

    __device__ Patches at(int64_t batch) const {
        Patches own = *this;
        own.view = View(window, batch);
        own.data += own.view.group * channels;
        const int taps = own.view.rows.taps * own.view.columns.taps;
        own.depth = int64_t{taps} * channels;
        own.by_taps = Divider(larger(own.view.columns.taps, 1));
        return own;
    }

    struct Row {
        const T* picture;  // null beyond the end
        int y, x;          // of the first tap
    };
    __device__ Row row(int m) const {
        if (m >= view.pixels(window.pictures)) return {nullptr, 0, 0};
        const View::Pixel pixel = view.pixel(m);
        return {data + int64_t{pixel.picture} * view.rows.inputs * line(), view.rows.in_first + pixel.y * view.rows.in_step,
                view.columns.in_first + pixel.x * view.columns.in_step};
    }
    __device__ void load(const Row& row, int k, T (&values)[4]) const {
        set_zero(values);
        if (!row.picture || k >= depth) return;
        if constexpr (quads) {
            if (const T* const from = find(row, k)) load_four(from, values);
        } else {
            ENGINE_UNROLL
            for (int i = 0; i < 4; ++i) {
                const T* const from = k + i < depth ? find(row, k + i) : nullptr;
                if (from) values[i] = __ldg(from);
            }
        }
    }

private:
    __device__ int64_t line() const { return int64_t{view.columns.inputs} * window.groups * channels; }
    // Where number k of a row lies; null in the padding.
    __device__ const T* find(const Row& row, int k) const {
        const int tap = by_channels.quotient(k), down = by_taps.quotient(tap);
        const int y = row.y + down * view.rows.dilation, x = row.x + by_taps.rest(tap, down) * view.columns.dilation;
        if (unsigned(y) >= unsigned(view.rows.inputs) || unsigned(x) >= unsigned(view.columns.inputs)) return nullptr;
        return row.picture + y * line() + int64_t{x} * window.groups * channels + by_channels.rest(k, tap);
    }
};

// The right factor of backward_input: the weight's channels, with those taps of all filters that a phase reads.
template <typename T, bool quads>
struct TapsOfWeight {
    static constexpr bool along_depth = false;
    const T* data;  // [filters][kernel_h][kernel_w][channels]
    Window window;
    int channels, filters;  // of one group
    Divider by_filters;
    View view = {};
    Divider by_taps = {};
    int64_t depth = 0;

    TapsOfWeight(const T* data, const Window& window, int channels, int filters)
        : data(data), window(window), channels(channels), filters(filters), by_filters(filters) {}

    __device__ TapsOfWeight at(int64_t batch) const {
        TapsOfWeight own = *this;
        own.view = View(window, batch);
        own.data += int64_t{own.view.group} * filters * window.rows.kernel * window.columns.kernel * channels;
        own.depth = int64_t{own.view.rows.taps} * own.view.columns.taps * filters;
        own.by_taps = Divider(larger(own.view.columns.taps, 1));
        return own;
    }

    using Row = int;
    __device__ Row row(int n) const { return n; }
    __device__ void load(Row n, int k, T (&values)[4]) const {
        if (n >= channels || k >= depth) return set_zero(values);
        const int tap = by_filters.quotient(k), down = by_taps.quotient(tap);
        const int i = view.rows.tap_first + down * view.rows.tap_step;
        const int j = view.columns.tap_first + by_taps.rest(tap, down) * view.columns.tap_step;
        const int64_t filter = by_filters.rest(k, tap);
        const T* const from = data + ((filter * window.rows.kernel + i) * window.columns.kernel + j) * channels + n;
        if constexpr (quads) {
            load_four(from, values);
        } else {
            ENGINE_UNROLL
            for (int e = 0; e < 4; ++e) values[e] = n + e < channels ? __ldg(from + e) : T(0);
        }
    }
};

// The right factor of backward_weight: a row for each tap and channel, with what it reads for all pixels.
template <typename T, bool quads>
struct PixelsOfTaps {
    static constexpr bool along_depth = false;
    const T* data;  // images, NHWC
    Window window;
    int channels;  // of one group
    int64_t depth;
    Divider by_columns, by_rows, by_channels, by_taps;
    Axis rows = {}, columns = {};

    PixelsOfTaps(const T* data, const Window& window, int channels)
        : data(data),
          window(window),
          channels(channels),
          depth(window.most_pixels()),
          by_columns(window.columns.out),
          by_rows(window.rows.out),
          by_channels(channels),
          by_taps(window.columns.kernel) {}

    __device__ PixelsOfTaps at(int64_t batch) const {
        PixelsOfTaps own = *this;
        own.data += batch * channels;
        own.rows = forward_axis(window.rows);
        own.columns = forward_axis(window.columns);
        return own;
    }

    // Of each of the four: how far its tap is from a pixel's first one, and its channel. In quads the first says all.
    struct Row {
        int y[quads ? 1 : 4], x[quads ? 1 : 4], channel[quads ? 1 : 4];
        bool exists[quads ? 1 : 4];
    };
    __device__ Row row(int n) const {
        Row row;
        ENGINE_UNROLL
        for (int e = 0; e < (quads ? 1 : 4); ++e) {
            const int tap = by_channels.quotient(n + e), down = by_taps.quotient(tap);
            row.exists[e] = down < rows.taps;
            row.channel[e] = by_channels.rest(n + e, tap);
            row.y[e] = rows.in_first + down * rows.dilation;
            row.x[e] = columns.in_first + by_taps.rest(tap, down) * columns.dilation;
        }
        return row;
    }
    __device__ void load(const Row& row, int k, T (&values)[4]) const {
        set_zero(values);
        if (k >= depth) return;
        const int line = by_columns.quotient(k), picture = by_rows.quotient(line);
        const int y = by_rows.rest(line, picture) * rows.in_step, x = by_columns.rest(k, line) * columns.in_step;
        ENGINE_UNROLL
        for (int e = 0; e < (quads ? 1 : 4); ++e) {
            const int down = y + row.y[e], across = x + row.x[e];
            if (!row.exists[e] || unsigned(down) >= unsigned(rows.inputs) || unsigned(across) >= unsigned(columns.inputs))
                continue;
            const int64_t pixel = (int64_t{picture} * rows.inputs + down) * columns.inputs + across;
            const T* const from = data + pixel * window.groups * channels + row.channel[e];
            if constexpr (quads)
                load_four(from, values);
            else
                values[e] = __ldg(from);
        }
    }
};

// The result of forward and backward_input: pixels in their places, plus a bias (or null); parts one after the other.
template <typename T>
struct PixelsOut {
    T* data;
    const T* bias;
    Window window;
    int channels;  // of one group
    int64_t part_stride;
    View view = {};
    int height = 0, width = 0, pixels = 0;

    PixelsOut(T* data, const T* bias, const Window& window, int channels, int64_t part_stride)
        : data(data), bias(bias), window(window), channels(channels), part_stride(part_stride) {}

    __device__ PixelsOut at(int64_t batch, int64_t part) const {
        PixelsOut own = *this;
        own.view = View(window, batch);
        own.data += part * part_stride + own.view.group * channels;
        own.bias = bias && part == 0 ? bias + own.view.group * channels : nullptr;
        own.height = window.backward ? window.rows.image : window.rows.out;
        own.width = window.backward ? window.columns.image : window.columns.out;
        own.pixels = own.view.pixels(window.pictures);
        return own;
    }
    __device__ void store(int m, int n, const T (&values)[4], int count, bool more) const {
        if (m >= pixels) return;
        const View::Pixel pixel = view.pixel(m);
        const int y = view.rows.out_first + pixel.y * view.rows.out_step;
        const int x = view.columns.out_first + pixel.x * view.columns.out_step;
        const int64_t place = (int64_t{pixel.picture} * height + y) * width + x;
        T* const to = data + place * window.groups * channels + n;
        if (!bias || more) return write(to, values, count, more, channels % 4 == 0);
        T sums[4];
        ENGINE_UNROLL
        for (int e = 0; e < 4; ++e) sums[e] = values[e] + (e < count ? __ldg(bias + n + e) : T(0));
        write(to, sums, count, false, channels % 4 == 0);
    }
};

}  // namespace
}  // namespace cuda
}  // namespace engine
