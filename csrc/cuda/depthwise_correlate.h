// Outputs of a depthwise convolution, and the gradient of its images, which is one too (depthwise_axis.h).
//
// A thread has one channel and a tile of outputs, `height` x `width`, in registers; the threads of a warp have
// neighbouring channels, so that each of their loads is one of 128 bytes. Going down the input rows below its tile, a
// thread reads a row once, (width - 1) * step + taps values, and uses it for all taps and all rows of outputs: the
// blocking of Zhang, Franchetti and Low, "High performance zero-memory overhead direct convolutions", ICML 2018. Values
// that neighbouring tiles share come from the first-level cache: a thread reads nothing that another lane of its warp
// has, so shared memory would not make the loads fewer, and would cost barriers.
//
// The filters of a block's channels lie in shared memory, a part at a time where they are large. Each part is summed up
// on its own, so that rounding errors do not grow with the size of the filter.
#pragma once

#include "depthwise_axis.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kWarps = 4;  // few, as small batches have few tiles
constexpr int kThreads = kWarps * kLanes;

// The tile of a thread. `taps`: the most of a filter row that are used at once.
template <typename Element, int taps_, int step_, int width_, int height_>
struct Tile {
    using T = Element;
    static constexpr int taps = taps_, step = step_, width = width_, height = height_;
    static constexpr int inputs = (width - 1) * step + taps;  // that a row of outputs reads
    static constexpr bool whole_filter = taps < 16;           // it fits into shared memory
    static constexpr int filter_rows = whole_filter ? taps : 64 / int(sizeof(T));

    // One more than the channels: neighbouring taps, written by one warp, are in different banks.
    struct Filter {
        T value[filter_rows][taps][kLanes + 1];
    };
};

template <typename T>
struct Correlation {
    const T *input, *weight, *bias;
    T* output;
    int channels, channel_blocks;
    AxisShape rows, columns;
    bool backward;
    int warps_across;              // of a block; its other warps are below
    int blocks_down, blocks_across;  // of an image, in each phase
};

// What a thread works on.
struct Place {
    int64_t image;
    int first_channel, channel;  // of the block and of the thread; that is not there if it is beyond the last
    int row_strip, column_strip;
    Axis rows, columns;
};

template <typename T>
__device__ inline Place place_of(const Correlation<T>& c) {
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    unsigned rest = blockIdx.x;
    const auto next = [&rest](int count) {
        const int digit = int(rest % unsigned(count));
        rest /= unsigned(count);
        return digit;
    };
    Place place;
    place.first_channel = next(c.channel_blocks) * kLanes;  // first, so that blocks side by side read side by side
    place.channel = place.first_channel + lane;
    place.column_strip = next(c.blocks_across) * c.warps_across + warp % c.warps_across;
    place.row_strip = next(c.blocks_down) * (kWarps / c.warps_across) + warp / c.warps_across;
    const int column_phase = next(c.columns.phases), row_phase = next(c.rows.phases);
    place.image = rest;
    place.rows = c.backward ? backward_axis(c.rows, row_phase) : forward_axis(c.rows);
    place.columns = c.backward ? backward_axis(c.columns, column_phase) : forward_axis(c.columns);
    return place;
}

// values[i] = of column first + i * distance; zero where there is none. `pixel`: elements from column to column.
template <int count, typename T>
__device__ inline void read_row(const T* row, int first, int distance, int columns, int64_t pixel, T (&values)[count]) {
    if (first >= 0 && first + distance * (count - 1) < columns) {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) values[i] = __ldg(row + (first + i * distance) * pixel);
    } else {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) {
            const int column = first + i * distance;
            values[i] = unsigned(column) < unsigned(columns) ? __ldg(row + column * pixel) : T(0);
        }
    }
}

// Copies the taps `down` x `across` of the block's filters to shared memory; waits for all who use what was there.
template <typename Tile, typename T>
__device__ inline void load_filter(const Correlation<T>& c, const Place& place, Taps down, Taps across,
                                   typename Tile::Filter& filter) {
    constexpr int rows = Tile::filter_rows, taps = Tile::taps;
    block_barrier();
    for (int e = threadIdx.x; e < kLanes * rows * taps; e += kThreads) {
        const int tap = e % taps, row = e / taps % rows, lane = e / taps / rows;
        if (row >= down.count || tap >= across.count) continue;
        const int channel = smaller(place.first_channel + lane, c.channels - 1);
        const int i = place.rows.tap_first + (down.first + row * c.rows.tap_spacing) * place.rows.tap_step;
        const int j = place.columns.tap_first + (across.first + tap * c.columns.tap_spacing) * place.columns.tap_step;
        filter.value[row][tap][lane] = c.weight[(int64_t(channel) * c.rows.kernel + i) * c.columns.kernel + j];
    }
    block_barrier();
}

// One row of the filter times one row of inputs. Taps that are not there are left out, not taken as zeros: they would
// make NaN of infinite values.
template <typename Tile, bool all_taps, typename T>
__device__ inline void add_row(const T (&filter)[Tile::taps][kLanes + 1], int count, const T (&values)[Tile::inputs],
                               T (&sums)[Tile::width]) {
    const int lane = threadIdx.x % kLanes;
    ENGINE_UNROLL
    for (int tap = 0; tap < Tile::taps; ++tap) {
        if (!all_taps && tap >= count) break;
        const T factor = filter[tap][lane];
        ENGINE_UNROLL
        for (int w = 0; w < Tile::width; ++w) sums[w] += factor * values[w * Tile::step + tap];
    }
}

// Adds to `sums` what the taps in shared memory give.
template <typename Tile, typename T>
__device__ inline void add_products(const Correlation<T>& c, const Place& place, const typename Tile::Filter& filter,
                                    Taps down, Taps across, T (&sums)[Tile::height][Tile::width]) {
    const Axis &rows = place.rows, &columns = place.columns;
    const int first_row = input_of(rows, first_output(c.rows, Tile::height, place.row_strip), down.first);
    const int first_column =
        input_of(columns, first_output(c.columns, Tile::width, place.column_strip), across.first);
    const T* image = c.input + place.image * rows.inputs * columns.inputs * c.channels +
                     smaller(place.channel, c.channels - 1);
    for (int k = 0; k < (Tile::height - 1) * Tile::step + down.count; ++k) {
        const int row = first_row + k * c.rows.distance;
        if (unsigned(row) >= unsigned(rows.inputs)) continue;
        T values[Tile::inputs];
        read_row(image + int64_t(row) * columns.inputs * c.channels, first_column, c.columns.distance, columns.inputs,
                 c.channels, values);
        ENGINE_UNROLL
        for (int r = 0; r < Tile::height; ++r) {
            const int tap = k - r * Tile::step;
            if (tap < 0 || tap >= down.count) continue;
            if (across.count == Tile::taps)
                add_row<Tile, true>(filter.value[tap], across.count, values, sums[r]);
            else
                add_row<Tile, false>(filter.value[tap], across.count, values, sums[r]);
        }
    }
}

template <typename Tile, typename T>
__device__ inline void store_outputs(const Correlation<T>& c, const Place& place,
                                     const T (&outputs)[Tile::height][Tile::width]) {
    if (place.channel >= c.channels) return;
    const Axis &rows = place.rows, &columns = place.columns;
    const int first_row = first_output(c.rows, Tile::height, place.row_strip);
    const int first_column = first_output(c.columns, Tile::width, place.column_strip);
    const int64_t height = c.backward ? c.rows.image : c.rows.out;
    const int64_t width = c.backward ? c.columns.image : c.columns.out;
    const T bias = c.bias ? c.bias[place.channel] : T(0);
    ENGINE_UNROLL
    for (int r = 0; r < Tile::height; ++r) {
        const int row = first_row + r * c.rows.spacing;
        if (row >= rows.outputs) break;
        T* line = c.output + place.channel +
                  (place.image * height + rows.out_first + row * rows.out_step) * width * c.channels;
        ENGINE_UNROLL
        for (int w = 0; w < Tile::width; ++w) {
            const int column = first_column + w * c.columns.spacing;
            if (column >= columns.outputs) break;
            line[int64_t(columns.out_first + column * columns.out_step) * c.channels] = outputs[r][w] + bias;
        }
    }
}

template <typename Tile>
__global__ void __launch_bounds__(kThreads) correlate(const Correlation<typename Tile::T> c) {
    using T = typename Tile::T;
    auto& filter = shared_memory<typename Tile::Filter>();
    const Place place = place_of(c);
    const bool any = place.row_strip < c.rows.strips && place.column_strip < c.columns.strips;
    const int parts_down = Tile::whole_filter ? 1 : tap_parts(c.rows, place.rows, Tile::filter_rows);
    const int parts_across = Tile::whole_filter ? 1 : tap_parts(c.columns, place.columns, Tile::taps);

    T outputs[Tile::height][Tile::width] = {};
    for (int i = 0; i < parts_down; ++i) {
        const Taps down = tap_part(c.rows, place.rows, Tile::filter_rows, i);
        for (int j = 0; j < parts_across; ++j) {
            const Taps across = tap_part(c.columns, place.columns, Tile::taps, j);
            load_filter<Tile>(c, place, down, across, filter);
            T sums[Tile::height][Tile::width] = {};
            if (any) add_products<Tile>(c, place, filter, down, across, sums);
            ENGINE_UNROLL
            for (int r = 0; r < Tile::height; ++r)
                ENGINE_UNROLL
                for (int w = 0; w < Tile::width; ++w) outputs[r][w] += sums[r][w];
        }
    }
    if (any) store_outputs<Tile>(c, place, outputs);
}

}  // namespace
}  // namespace cuda
}  // namespace engine
