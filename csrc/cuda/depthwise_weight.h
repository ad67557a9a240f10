// Gradient of the weight of a depthwise convolution: per channel and tap, a sum over all images and places.
//
// A thread has one channel and a tile of taps in registers, and walks over strips of the gradient: `height` x `width`
// values in registers, with which it goes down the rows of the image that they meet, each read once. A warp sums up a
// part of all strips; the parts' sums go to the workspace and a second kernel adds them, always in the same order. How
// the sums are split depends on the shape alone. Sums are formed in levels (strips, parts, all), so that rounding errors
// do not grow with their length; the middle level is in shared memory, as registers are taken.
#pragma once

#include "depthwise_correlate.h"

namespace engine {
namespace cuda {
namespace {

template <typename Element, int taps_down_, int taps_across_, int step_, int width_>
struct WeightTile {
    using T = Element;
    static constexpr int taps_down = taps_down_, taps_across = taps_across_, step = step_;
    static constexpr int height = 2, width = width_;
    static constexpr int input_rows = (height - 1) * step + taps_down;
    static constexpr int inputs = (width - 1) * step + taps_across;
    static constexpr int run_strips = 256 / (height * width);  // summed up one after the other

    struct Sums {
        T value[kWarps][taps_down][taps_across][kLanes];
    };
};

template <typename T>
struct WeightSum {
    const T *gradient, *image;
    T* partial;  // [parts][taps][channels]
    int channels, channel_blocks;
    AxisShape rows, columns;
    int tiles_down, tiles_across;  // of taps
    int64_t strips;                // of all images
    int parts;
};

// A strip of the gradient, and the next one.
struct Strip {
    int64_t image;
    int row, column;

    __device__ void next(int rows, int columns) {
        if (++column < columns) return;
        column = 0;
        if (++row < rows) return;
        row = 0;
        ++image;
    }
};

// The gradient at the strip's places; zeros where there are none.
template <typename Tile, typename T>
__device__ inline void read_gradient(const WeightSum<T>& s, const Strip& strip, int channel,
                                     T (&gradient)[Tile::height][Tile::width]) {
    const int first_row = first_output(s.rows, Tile::height, strip.row);
    const int first_column = first_output(s.columns, Tile::width, strip.column);
    ENGINE_UNROLL
    for (int r = 0; r < Tile::height; ++r) {
        const int row = first_row + r * s.rows.spacing;
        const bool any = row < s.rows.out;
        const T* line = s.gradient + channel + (strip.image * s.rows.out + (any ? row : 0)) * s.columns.out * s.channels;
        read_row(line, first_column, s.columns.spacing, any ? s.columns.out : 0, s.channels, gradient[r]);
    }
}

// Adds to `sums` the products of a strip with the image, for the taps from (first_tap_row, first_tap_column) on.
template <typename Tile, typename T>
__device__ inline void add_strip(const WeightSum<T>& s, const Strip& strip, int channel, int first_tap_row,
                                 int first_tap_column, T (&sums)[Tile::taps_down][Tile::taps_across]) {
    T gradient[Tile::height][Tile::width];
    read_gradient<Tile>(s, strip, channel, gradient);
    const Axis rows = forward_axis(s.rows), columns = forward_axis(s.columns);
    const int first_row = input_of(rows, first_output(s.rows, Tile::height, strip.row), first_tap_row);
    const int first_column = input_of(columns, first_output(s.columns, Tile::width, strip.column), first_tap_column);
    const T* image = s.image + channel + strip.image * rows.inputs * columns.inputs * s.channels;
    ENGINE_UNROLL
    for (int k = 0; k < Tile::input_rows; ++k) {
        const int row = first_row + k * s.rows.distance;
        if (unsigned(row) >= unsigned(rows.inputs)) continue;
        T values[Tile::inputs];
        read_row(image + int64_t(row) * columns.inputs * s.channels, first_column, s.columns.distance, columns.inputs,
                 s.channels, values);
        ENGINE_UNROLL
        for (int r = 0; r < Tile::height; ++r) {
            const int i = k - r * Tile::step;
            if (i < 0 || i >= Tile::taps_down) continue;
            ENGINE_UNROLL
            for (int j = 0; j < Tile::taps_across; ++j)
                ENGINE_UNROLL
                for (int w = 0; w < Tile::width; ++w) sums[i][j] += gradient[r][w] * values[w * Tile::step + j];
        }
    }
}

// total[..][lane] (+)= sums, which are then zero.
template <typename Tile, typename T>
__device__ inline void move_sums(T (&sums)[Tile::taps_down][Tile::taps_across],
                                 T (&total)[Tile::taps_down][Tile::taps_across][kLanes], bool first) {
    const int lane = threadIdx.x % kLanes;
    ENGINE_UNROLL
    for (int i = 0; i < Tile::taps_down; ++i)
        ENGINE_UNROLL
        for (int j = 0; j < Tile::taps_across; ++j) {
            total[i][j][lane] = first ? sums[i][j] : total[i][j][lane] + sums[i][j];
            sums[i][j] = 0;
        }
}

// partial = of one part of all strips; a warp for each part, tile of taps and 32 channels.
template <typename Tile>
__global__ void __launch_bounds__(kThreads) sum_parts(const WeightSum<typename Tile::T> s) {
    using T = typename Tile::T;
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    int64_t rest = int64_t(blockIdx.x) * kWarps + warp;
    const int tile_column = int(rest % s.tiles_across), tile_row = int(rest / s.tiles_across % s.tiles_down);
    rest /= int64_t(s.tiles_across) * s.tiles_down;
    const int channel = int(rest % s.channel_blocks) * kLanes + lane;
    const int64_t part = rest / s.channel_blocks;
    if (part >= s.parts) return;

    auto& total = shared_memory<typename Tile::Sums>().value[warp];
    const Taps down = tap_part(s.rows, forward_axis(s.rows), Tile::taps_down, tile_row);
    const Taps across = tap_part(s.columns, forward_axis(s.columns), Tile::taps_across, tile_column);
    const int64_t first = s.strips * part / s.parts, last = s.strips * (part + 1) / s.parts;
    Strip strip{first / s.columns.strips / s.rows.strips, int(first / s.columns.strips % s.rows.strips),
                int(first % s.columns.strips)};
    T sums[Tile::taps_down][Tile::taps_across] = {};
    move_sums<Tile>(sums, total, true);
    int run = 0;
    for (int64_t left = last - first; left > 0; --left) {
        add_strip<Tile>(s, strip, smaller(channel, s.channels - 1), down.first, across.first, sums);
        strip.next(s.rows.strips, s.columns.strips);
        if (++run < Tile::run_strips && left > 1) continue;
        move_sums<Tile>(sums, total, false);
        run = 0;
    }

    if (channel >= s.channels) return;
    for (int i = 0; i < down.count; ++i)
        for (int j = 0; j < across.count; ++j) {
            const int row = down.first + i * s.rows.tap_spacing, column = across.first + j * s.columns.tap_spacing;
            const int64_t tap = int64_t(row) * s.columns.kernel + column;
            s.partial[(part * s.rows.kernel * s.columns.kernel + tap) * s.channels + channel] = total[i][j][lane];
        }
}

constexpr int kJoinWarps = 16;

template <typename T>
struct JoinedSums {
    T value[kJoinWarps][kLanes];
};

// out[channels][taps] = sum of the parts. A block has one tap and 32 channels, a warp every 16th part.
template <typename T>
__global__ void __launch_bounds__(kJoinWarps* kLanes) join_parts(const T* partial, T* out, int parts, int64_t taps,
                                                                 int channels, int channel_blocks) {
    auto& sums = shared_memory<JoinedSums<T>>().value;
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const int channel = int(blockIdx.x % unsigned(channel_blocks)) * kLanes + lane;
    const int64_t tap = blockIdx.x / unsigned(channel_blocks);
    T sum = 0;
    if (channel < channels)
        for (int part = warp; part < parts; part += kJoinWarps) sum += partial[(part * taps + tap) * channels + channel];
    sums[warp][lane] = sum;
    block_barrier();
    if (warp > 0 || channel >= channels) return;
    for (int other = 1; other < kJoinWarps; ++other) sum += sums[other][lane];
    out[channel * taps + tap] = sum;
}

}  // namespace
}  // namespace cuda
}  // namespace engine
