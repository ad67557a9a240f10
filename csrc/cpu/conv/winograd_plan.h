// What a Winograd convolution computes, in the terms of winograd.h, and how it is cut into pieces that fit caches.
#pragma once

#include "../convolution.h"
#include "../gemm.h"

namespace engine::ENGINE_ISA {
namespace {

// The outputs and filter taps of a tile along both axes. A filter of one row (or column) has tiles of one row.
template <int outputs_h_, int taps_h_, int outputs_w_, int taps_w_>
struct Form {
    static constexpr int outputs_h = outputs_h_, taps_h = taps_h_, size_h = outputs_h + taps_h - 1;
    static constexpr int outputs_w = outputs_w_, taps_w = taps_w_, size_w = outputs_w + taps_w - 1;
    static constexpr int taps = taps_h * taps_w;
    static constexpr int places = size_h * size_w;  // of a transformed tile; a matrix product for each
};

// One of the two directions, as if it were the forward one: the gradient of the images is the convolution of the
// gradient of the outputs with the filters rotated by half a turn, whose channels and filters trade places.
struct Layer {
    int64_t batch, groups, height, width, out_h, out_w;
    int64_t channels, filters;     // of one group
    int64_t padding_h, padding_w;  // negative when the gradient's padding exceeds the filter
    bool rotated;

    Layer(const ConvShape& s, Direction direction) : batch(s.batch), groups(s.groups) {
        rotated = direction == Direction::backward_input;
        height = rotated ? s.out_h : s.height;
        width = rotated ? s.out_w : s.width;
        out_h = rotated ? s.height : s.out_h;
        out_w = rotated ? s.width : s.out_w;
        channels = (rotated ? s.filters : s.channels) / s.groups;
        filters = (rotated ? s.channels : s.filters) / s.groups;
        padding_h = rotated ? s.kernel_h - 1 - s.padding_h : s.padding_h;
        padding_w = rotated ? s.kernel_w - 1 - s.padding_w : s.padding_w;
    }
};

// How a layer is computed. Threads decide who computes what, never in which order channels are summed.
//
// A block of tiles goes through all three steps before the next one starts, so the transformed tiles, which are
// larger than the images (2.25 times for 4x4 outputs of 3x3 filters), never reach the main memory. The products of
// one block are made panel by panel of filters; one panel's sums for all places of the block stay in the second-level
// cache until their outputs are written. Large filters stream through the cache once per block, fetched ahead.
template <typename T, typename F>
struct Plan {
    Layer layer;
    int64_t tiles_h, tiles_w, tiles;  // tiles: of the whole batch
    int64_t depth, depth_blocks;      // channels that are summed at a time
    int64_t panels;                   // of kPanel<T> filters, in one group
    int64_t block, blocks;            // tiles that are transformed at a time
    bool shared;        // all threads work at one block of tiles, each at panels of its own; else at a block each
    bool filters_late;  // each panel's filters are transformed where they are used, else all of them at the start
    // Elements from one place of transformed values to the next. Each is a multiple of 4 KB and one cache line more:
    // a transform writes one vector for every place, and so they fall into different sets of the cache.
    int64_t input_place, filter_place, sum_place;

    Plan(const Layer& of, int threads) : layer(of) {
        tiles_h = ceil_div(layer.out_h, F::outputs_h);
        tiles_w = ceil_div(layer.out_w, F::outputs_w);
        tiles = layer.batch * tiles_h * tiles_w;
        panels = ceil_div(layer.filters, kPanel<T>);

        // A panel of so many channels takes 32 KB and leaves the first-level cache some room for the tiles.
        constexpr int64_t kDepth = 256;
        depth = round_up(ceil_div(layer.channels, ceil_div(layer.channels, kDepth)), kLanes<T>);
        depth_blocks = ceil_div(layer.channels, depth);
        filter_place = spread(depth * kPanel<T>);

        // Transformed filters that no core can keep are better streamed to all of them at the same time. Where there
        // are few tiles to use them, even writing them to memory takes too long: to transform them again for each of
        // one or two blocks, in a buffer that stays in the cache, is faster.
        constexpr int64_t kKept = 8 << 20, kFewTiles = 128;
        const bool large = filter_elements() / layer.groups * static_cast<int64_t>(sizeof(T)) > kKept;
        shared = panels >= threads && (large || tiles <= kFewTiles);
        filters_late = shared && tiles <= kFewTiles;

        // The sums of a block's panel take 256 KB, up to sizes where a block's inputs would no longer stay in caches.
        constexpr int64_t kSums = 2048, kFewest = 2 * kRows, kMost = 112;
        int64_t most = filters_late ? kFewTiles / 2 : larger(kFewest, smaller(kMost, kSums / F::places));
        if (!shared) most = smaller(most, larger(kRows, ceil_div(tiles * layer.groups, threads)));
        blocks = ceil_div(tiles, most);
        block = ceil_div(tiles, blocks);
        input_place = spread(block * depth);
        sum_place = spread(block * kPanel<T>);
    }

    static int64_t spread(int64_t elements) {
        return (round_up(elements * sizeof(T), 4096) + 64) / static_cast<int64_t>(sizeof(T));
    }

    int64_t tiles_of(int64_t first_tile) const { return smaller(block, tiles - first_tile); }
    int64_t depth_of(int64_t depth_block) const { return smaller(depth, layer.channels - depth_block * depth); }

    // Elements of what is held in memory: the transformed filters of one panel and one block of channels, and all
    // of them; the transformed inputs of one block of tiles; and the sums of one panel for it.
    int64_t filter_block_elements() const { return F::places * filter_place; }
    int64_t filter_elements() const { return layer.groups * panels * depth_blocks * filter_block_elements(); }
    int64_t input_elements() const { return depth_blocks * F::places * input_place; }
    int64_t sum_elements() const { return F::places * sum_place; }

    int64_t workspace_elements(int threads, bool prepared) const {
        const int64_t filters = filters_late ? threads * filter_block_elements() : filter_elements();
        return (shared ? 1 : threads) * input_elements() + threads * sum_elements() + (prepared ? 0 : filters);
    }
};

}  // namespace
}  // namespace engine::ENGINE_ISA
