// How a convolution is cut into tiles for the FFT algorithm, and how much memory its spectra need. Everything follows
// from the shape alone.
#pragma once

#include <algorithm>

#include "convolution.h"
#include "fft_tile.h"

namespace engine {
namespace cuda {
namespace {

// Of a filter, its dilation included. A tile of 32 then yields 16 x 16 results, a quarter of its places. With larger ones
// most of the work would be overlap, and spectra would take ten times the memory of the images and more; spectra of whole
// images need neither (engine/ops/spectral.py).
constexpr int64_t kLargestFilter = 17;

// The cost of moving a byte, in multiplications: those of an H100 while its second-level cache delivers one.
constexpr double kMultiplicationsPerByte = 6;

// Bytes of spectra of tiles that are meant to stay in the second-level cache: 40 MiB on an A100, 50 on an H100.
constexpr int64_t kCached = portion(int64_t{32} << 20, 40000);
// But the filters' spectra (or the sums of the weight's gradient) are read anew for each portion of tiles, so these are
// many, unless that takes too much memory.
constexpr int64_t kManyTiles = portion(512, 2), kFewTiles = portion(32, 1), kMostBytes = int64_t{512} << 20;
// Rows that a block of a matrix product computes: portions are multiples of it.
constexpr int64_t kRowsAtOnce = portion(64, 2);

struct Plan {
    int size;                        // of a tile, in both directions; 0: the filter is too large
    int64_t filter_h, filter_w;      // of a filter with the gaps of its dilation
    int64_t tile_h, tile_w;          // results of a tile: those that no wrapping round reaches
    int64_t tiles_y, tiles_x, tiles; // of an image, and of the whole batch
    int64_t portion;                 // tiles that are worked on at a time
    Spectra images, results, filters;

    int64_t batches() const { return frequencies(size) * images.groups; }
    int64_t filter_elements() const { return frequencies(size) * filters.frequency(); }
    int64_t tile_elements() const { return frequencies(size) * (images.frequency() + results.frequency()); }

    // In units of a multiplication. Every spectrum is written once and read once.
    double cost() const {
        const double channels = double(images.padded()), outputs = double(results.padded());
        const double pairs = channels * outputs, values = tiles * (channels + outputs) + pairs;
        return double(batches()) * (4.0 * tiles * pairs + kMultiplicationsPerByte * 2 * 8 * values);
    }
};

inline Plan plan_with_size(const ConvShape& s, Direction direction, int size) {
    Plan plan;
    plan.size = size;
    plan.filter_h = (s.kernel_h - 1) * s.dilation_h + 1;
    plan.filter_w = (s.kernel_w - 1) * s.dilation_w + 1;
    // A stride is taken as 1: the places between the results are computed and dropped.
    const bool input = direction == Direction::backward_input;
    const int64_t places_h = input ? s.height : (s.out_h - 1) * s.stride_h + 1;
    const int64_t places_w = input ? s.width : (s.out_w - 1) * s.stride_w + 1;
    plan.tile_h = std::min<int64_t>(size - plan.filter_h + 1, places_h);
    plan.tile_w = std::min<int64_t>(size - plan.filter_w + 1, places_w);
    plan.tiles_y = divide_up(places_h, plan.tile_h);
    plan.tiles_x = divide_up(places_w, plan.tile_w);
    plan.tiles = s.batch * plan.tiles_y * plan.tiles_x;
    plan.images = {s.groups, 1, s.channels / s.groups};
    plan.results = {s.groups, 1, s.filters / s.groups};
    plan.filters = {s.groups, s.filters / s.groups, s.channels / s.groups};

    const int64_t bytes_of_tile = plan.tile_elements() * 4;
    const int64_t many = std::max<int64_t>(kFewTiles, std::min<int64_t>(kManyTiles, kMostBytes / bytes_of_tile));
    const int64_t most = std::max<int64_t>(many, kCached / bytes_of_tile);
    const int64_t even = divide_up(plan.tiles, divide_up(plan.tiles, most));
    plan.portion = std::min<int64_t>(plan.tiles, divide_up(even, kRowsAtOnce) * kRowsAtOnce);
    plan.images.rows = plan.results.rows = plan.portion;
    return plan;
}

// The plan of the cheaper size of a tile.
inline Plan plan_of(const ConvShape& s, Direction direction) {
    Plan best = {};
    const int64_t filter = std::max<int64_t>((s.kernel_h - 1) * s.dilation_h, (s.kernel_w - 1) * s.dilation_w) + 1;
    if (filter > kLargestFilter) return best;
    for (const int size : {16, 32}) {
        if (filter > size) continue;
        const Plan plan = plan_with_size(s, direction, size);
        if (best.size == 0 || plan.cost() < best.cost()) best = plan;
    }
    return best;
}

}  // namespace
}  // namespace cuda
}  // namespace engine
