// How a convolution is cut into tiles for the FFT algorithm, and how much memory its spectra need. Everything follows
// from the shape alone, never from the number of threads, so that this cannot change the result.
#pragma once

#include "../convolution.h"
#include "fft_tile.h"

namespace engine::ENGINE_ISA {
namespace {

struct Plan {
    int64_t size = 0;                // of a tile, in both directions
    int64_t filter_h, filter_w;      // of a filter with the gaps of its dilation
    int64_t tile_h, tile_w;          // results of a tile: those that no wrapping round reaches
    int64_t tiles_y, tiles_x, tiles; // of an image, and of the whole batch
    int64_t block;                   // tiles that are worked on at a time
    int64_t channels, filters;       // of a group
};

// What transforming one value of a tile costs, in multiplications of the product: fitted to measurements of tile sizes
// 16 to 64.
constexpr double kTransformCost = 40;

// Spectra of a block of tiles, in single precision: they are written and read in turn, so they should stay in the last
// cache. But the filters' spectra are read for each block, so it has at least so many tiles. Blocks are of at most a
// multiple of 42 tiles, and so of kRows with any instruction set.
constexpr int64_t kBlockBytes = int64_t{8} << 20;
constexpr int64_t kFewestTiles = 42;

inline Plan plan_with_size(const ConvShape& s, Direction direction, int64_t size) {
    Plan plan;
    plan.size = size;
    plan.filter_h = (s.kernel_h - 1) * s.dilation_h + 1;
    plan.filter_w = (s.kernel_w - 1) * s.dilation_w + 1;
    // A stride is taken as 1: the places between the results are computed and dropped.
    const bool input = direction == Direction::backward_input;
    const int64_t places_h = input ? s.height : (s.out_h - 1) * s.stride_h + 1;
    const int64_t places_w = input ? s.width : (s.out_w - 1) * s.stride_w + 1;
    plan.tile_h = smaller(size - plan.filter_h + 1, places_h);
    plan.tile_w = smaller(size - plan.filter_w + 1, places_w);
    plan.tiles_y = ceil_div(places_h, plan.tile_h);
    plan.tiles_x = ceil_div(places_w, plan.tile_w);
    plan.tiles = s.batch * plan.tiles_y * plan.tiles_x;
    plan.channels = s.channels / s.groups;
    plan.filters = s.filters / s.groups;
    const int64_t bytes_of_tile = frequencies(size) * 2 * 4 * larger(plan.channels, plan.filters);
    const int64_t most = larger(kFewestTiles, kBlockBytes / bytes_of_tile / kFewestTiles * kFewestTiles);
    plan.block = ceil_div(plan.tiles, ceil_div(plan.tiles, most));
    return plan;
}

// What a tile size costs: half as many products as a tile has values, each three multiplications, and the transforms of
// tiles and filters.
inline double cost(const Plan& plan) {
    const double pairs = static_cast<double>(plan.channels) * plan.filters;
    const double transforms = static_cast<double>(plan.tiles) * (plan.channels + plan.filters) + pairs;
    return (1.5 * plan.tiles * pairs + kTransformCost * transforms) * plan.size * plan.size;
}

// The plan of the cheapest size of a tile; its size is 0 if the filter is too large for all of them.
inline Plan plan_of(const ConvShape& s, Direction direction) {
    Plan best;
    for (const int64_t size : kTileSizes) {
        const int64_t filter = larger((s.kernel_h - 1) * s.dilation_h, (s.kernel_w - 1) * s.dilation_w) + 1;
        if (filter > size * 3 / 4) continue;
        const Plan plan = plan_with_size(s, direction, size);
        if (best.size == 0 || cost(plan) < cost(best)) best = plan;
    }
    return best;
}

// The memory of `rows` spectra of `channels` channels each: at every frequency a complex matrix.
struct SpectraLayout {
    int64_t rows, vectors;
    int64_t row_stride, stride;  // elements between rows, and between frequencies
    int64_t elements;
};

template <typename T>
constexpr int64_t vectors_of(int64_t channels) {
    return ceil_div(channels, kLanes<T>);
}

template <typename T>
SpectraLayout spectra_layout(const Plan& plan, int64_t rows, int64_t channels) {
    SpectraLayout layout;
    layout.rows = rows;
    layout.vectors = vectors_of<T>(channels);
    layout.row_stride = layout.vectors * 2 * kLanes<T>;
    // An odd number of pairs of cache lines: with a power of two all frequencies would fall on the same few sets of a
    // cache.
    constexpr int64_t unit = 128 / sizeof(T);
    layout.stride = (ceil_div(rows * layout.row_stride, unit) | 1) * unit;
    layout.elements = layout.stride * frequencies(plan.size);
    return layout;
}

}  // namespace
}  // namespace engine::ENGINE_ISA
