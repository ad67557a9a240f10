// The three transforms of a Winograd convolution, between arrays as the caller has them and transformed tiles.
#pragma once

#include "../../simd/transpose.h"
#include "../../simd/winograd_transform.h"
#include "winograd_plan.h"

namespace engine::ENGINE_ISA {
namespace {

// Where a tile lies: its image, and its first output. It steps through the tiles in the order of the output's pixels.
struct TileAt {
    int64_t image, row, column;

    template <typename T, typename F>
    TileAt(const Plan<T, F>& plan, int64_t tile) {
        image = tile / (plan.tiles_h * plan.tiles_w);
        row = tile / plan.tiles_w % plan.tiles_h * F::outputs_h;
        column = tile % plan.tiles_w * F::outputs_w;
    }
};

// The transform of one vector of channels of a tile whose load(i, j) gives the pixels; written `place` apart.
template <typename F, typename T, typename Load>
ENGINE_INLINE void transform_input_tile(T* out, int64_t place, Load load_pixel) {
    Vector<T> half[F::size_h * F::size_w];
    for (int j = 0; j < F::size_w; ++j) {
        Vector<T> column[F::size_h];
#pragma GCC unroll 8
        for (int i = 0; i < F::size_h; ++i) column[i] = load_pixel(i, j);
        transform_input<F::outputs_h, F::taps_h, T>(column, 1, half + j, F::size_w);
    }
    for (int i = 0; i < F::size_h; ++i) {
        Vector<T> row[F::size_w];
        transform_input<F::outputs_w, F::taps_w, T>(half + i * F::size_w, 1, row, 1);
#pragma GCC unroll 8
        for (int j = 0; j < F::size_w; ++j) store(out + (i * F::size_w + j) * place, row[j]);
    }
}

// Transforms all channels of the group at `images` of one tile: out[depth block][place][tile][depth], where `out`
// already points at the tile. Channels that fill the last vector are zero.
template <typename F, typename T>
inline void transform_input_pixels(const Plan<T, F>& plan, const T* images, int64_t tile, T* out) {
    const Layer& layer = plan.layer;
    const TileAt at(plan, tile);
    const int64_t top = at.row - layer.padding_h, left = at.column - layer.padding_w;
    const int64_t pixel = layer.groups * layer.channels, line = layer.width * pixel;
    const T* image = images + at.image * layer.height * line;
    const bool inside = top >= 0 && left >= 0 && top + F::size_h <= layer.height && left + F::size_w <= layer.width;
    for (int64_t block = 0; block < plan.depth_blocks; ++block) {
        const int64_t start = block * plan.depth, end = start + plan.depth_of(block);
        T* to = out + block * F::places * plan.input_place;
        for (int64_t c = start; c < end; c += kLanes<T>, to += kLanes<T>) {
            if (inside && c + kLanes<T> <= end) {
                const T* first = image + top * line + left * pixel + c;
                transform_input_tile<F>(to, plan.input_place, [&](int i, int j) {
                    // What the tile to the right will read and this one does not.
                    if (j >= F::size_w - F::outputs_w) prefetch(first, i * line + (j + F::outputs_w) * pixel);
                    return load(first + i * line + j * pixel);
                });
            } else {
                transform_input_tile<F>(to, plan.input_place, [&](int i, int j) {
                    const int64_t y = top + i, x = left + j;
                    if (y < 0 || x < 0 || y >= layer.height || x >= layer.width) return Vector<T>{};
                    return load_some(image + y * line + x * pixel + c, end - c);
                });
            }
        }
    }
}

// Writes one panel's outputs of one tile: `sums` points at the tile's first place, `output` at the panel's first
// filter of the first image, of which `filters` are left, and `bias` likewise or is null.
template <typename F, typename T>
inline void transform_output_pixels(const Plan<T, F>& plan, const T* sums, int64_t tile, int64_t filters,
                                    const T* bias, T* output) {
    const Layer& layer = plan.layer;
    const TileAt at(plan, tile);
    const int64_t pixel = layer.groups * layer.filters, place = plan.sum_place;
    const int64_t rows = smaller(F::outputs_h, layer.out_h - at.row);
    const int64_t columns = smaller(F::outputs_w, layer.out_w - at.column);
    T* first = output + ((at.image * layer.out_h + at.row) * layer.out_w + at.column) * pixel;
    for (int64_t k = 0; k < smaller(kPanel<T>, filters); k += kLanes<T>) {
        const int64_t left = smaller(kLanes<T>, filters - k);
        Vector<T> half[F::outputs_h * F::size_w];
        for (int j = 0; j < F::size_w; ++j) {
            Vector<T> column[F::size_h];
#pragma GCC unroll 8
            for (int i = 0; i < F::size_h; ++i) column[i] = load(sums + (i * F::size_w + j) * place + k);
            transform_output<F::outputs_h, F::taps_h, T>(column, 1, half + j, F::size_w);
        }
        const Vector<T> added = bias ? load_some(bias + k, left) : Vector<T>{};
        for (int i = 0; i < rows; ++i) {
            Vector<T> row[F::outputs_w];
            transform_output<F::outputs_w, F::taps_w, T>(half + i * F::size_w, 1, row, 1);
            T* to = first + i * layer.out_w * pixel + k;
            if (columns == F::outputs_w && left == kLanes<T>) {
#pragma GCC unroll 8
                for (int j = 0; j < F::outputs_w; ++j) store(to + j * pixel, row[j] + added);
            } else {
                for (int j = 0; j < columns; ++j) store_some(to + j * pixel, row[j] + added, left);
            }
        }
    }
}

// A square of a weight: kLanes rows `stride` apart, of which `rows` exist, of kLanes elements, of which `columns`
// exist. What does not exist is zero; there may be nothing at all.
template <typename T>
ENGINE_INLINE void load_square(const T* from, int64_t stride, int64_t rows, int64_t columns, Vector<T>* square) {
    constexpr int lanes = kLanes<T>;
    if (rows >= lanes && columns >= lanes) {
#pragma GCC unroll 16
        for (int row = 0; row < lanes; ++row) {
            square[row] = load(from + row * stride);
            prefetch(from, row * stride + lanes);  // of the next square: rows too short for the hardware to foresee
        }
    } else {
        for (int row = 0; row < lanes; ++row)
            square[row] = row < rows ? load_some(from + row * stride, columns) : Vector<T>{};
    }
}

// The taps of kLanes filters, from `filter` on, for as many channels: taps[tap][channel] is a vector of filters.
template <typename F, typename T>
ENGINE_INLINE void load_taps(const Layer& layer, const T* weight, int64_t filter, int64_t channel,
                             Vector<T> (*taps)[kLanes<T>]) {
    const int64_t filters = layer.filters - filter, channels = layer.channels - channel;
    filter = smaller(filter, layer.filters - 1);  // the second vector of a panel may have none: no address beyond them
    for (int tap = 0; tap < F::taps; ++tap)
        if (layer.rotated) {  // the weight's filters are this layer's channels, and its channels already lie in lanes
            const T* from = weight + (channel * F::taps + F::taps - 1 - tap) * layer.filters + filter;
            load_square(from, F::taps * layer.filters, channels, filters, taps[tap]);
        } else {
            const T* from = weight + (filter * F::taps + tap) * layer.channels + channel;
            load_square(from, F::taps * layer.channels, filters, channels, taps[tap]);
            transpose<T>(taps[tap]);
        }
}

// Transforms the filters of one panel for one block of channels, `part` counting the blocks of channels of all panels
// of all groups: out[place][depth][kPanel]. Never inlined: transformed early or late, the same bits result.
template <typename F, typename T>
__attribute__((noinline)) void transform_filters(const Plan<T, F>& plan, const T* weight, int64_t part, T* out) {
    constexpr int lanes = kLanes<T>;
    const Layer& layer = plan.layer;
    const int64_t depth_block = part % plan.depth_blocks, panel = part / plan.depth_blocks % plan.panels;
    const int64_t depth = plan.depth_of(depth_block), place = plan.filter_place;
    weight += part / plan.depth_blocks / plan.panels * layer.filters * F::taps * layer.channels;
    for (int64_t start = 0; start < depth; start += lanes)
        for (int64_t k = 0; k < kPanel<T>; k += lanes) {
            Vector<T> taps[F::taps][lanes];
            load_taps<F>(layer, weight, panel * kPanel<T> + k, depth_block * plan.depth + start, taps);
            for (int64_t c = 0; c < smaller(lanes, depth - start); ++c) {
                Vector<T> half[F::size_h * F::taps_w];
#pragma GCC unroll 3
                for (int j = 0; j < F::taps_w; ++j) {
                    Vector<T> column[F::taps_h];
#pragma GCC unroll 3
                    for (int i = 0; i < F::taps_h; ++i) column[i] = taps[i * F::taps_w + j][c];
                    transform_filter<F::outputs_h, F::taps_h, T>(column, 1, half + j, F::taps_w);
                }
                T* to = out + (start + c) * kPanel<T> + k;
                for (int i = 0; i < F::size_h; ++i) {
                    Vector<T> row[F::size_w];
                    transform_filter<F::outputs_w, F::taps_w, T>(half + i * F::taps_w, 1, row, 1);
#pragma GCC unroll 8
                    for (int j = 0; j < F::size_w; ++j) {
                        // Written soon: so many places, each elsewhere, are too many for the hardware to foresee.
                        prefetch<true>(to, (i * F::size_w + j) * place + 2 * kPanel<T>);
                        store(to + (i * F::size_w + j) * place, row[j]);
                    }
                }
            }
        }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
