// The gradient of the weight as a matrix product: the output's gradient, transposed, times the unfolded images.
//
// The sums run over all pixels of the batch, up to some 400,000. They are cut into slabs of pixels, as many as the
// shape says and not the threads, each with sums of its own in the workspace; this keeps rounding small, gives small
// weights enough independent parts for all threads, and is added up in the order of the slabs, so the result does
// not depend on the number of threads.
#pragma once

#include "../team.h"
#include "tile.h"
#include "unfold.h"

namespace engine::ENGINE_ISA {
namespace {

// Pixels whose rows are copied at a time, and filters and columns (of the unfolded matrix) that a thread works on.
template <typename T>
constexpr int64_t kPixels = kDepth<T>;
template <typename T>
constexpr int64_t kBlock = kDepth<T>;

template <typename T>
struct WeightGradient {
    const Correlation c;
    const T *gradient, *images;
    T *out, *workspace;

    int64_t filters() const { return c.target_channels; }
    int64_t pitch() const { return round_up(c.depth(), kPanel<T>); }  // between filters in a slab's sums
    int64_t sums() const { return c.groups * filters() * pitch(); }

    // Slabs are of about 1024 pixels or more: at most 16 of them, of 4 Mi sums in all.
    int64_t slabs() const {
        const int64_t most = larger(1, smaller(16, (int64_t{1} << 22) / sums()));
        return smaller(most, ceil_div(c.results(), 1024));
    }
    static constexpr int64_t buffer() { return kPixels<T> * kPitch<T>; }
    int64_t workspace_elements(int threads) const { return slabs() * sums() + threads * buffer(); }

    // The sums of one slab for filters [first, last) and columns [begin, end) of a group.
    void block(int64_t slab_index, int64_t group, int64_t first, int64_t last, int64_t begin, int64_t end) const {
        T* unfolded = workspace + slabs() * sums() + Team::this_thread() * buffer();
        const int64_t slab_begin = slab_index * c.results() / slabs();
        const int64_t slab_end = (slab_index + 1) * c.results() / slabs();
        const int64_t step = c.groups * filters(), channels = c.groups * c.source_channels;
        // Whole vectors are read, so pixels of other sizes have to be copied; and see readable_in_place().
        const bool copied = !c.dense() || channels >= 4 * kDepth<T> || c.source_channels % kLanes<T> != 0;
        const int64_t tiles = ceil_div(last - first, kRows);
        T* slab_sums = workspace + slab_index * sums() + group * filters() * pitch();
        Position at = position(c, slab_begin);
        for (int64_t pixel = slab_begin; pixel < slab_end; pixel += kPixels<T>) {
            const int64_t pixels = smaller(kPixels<T>, slab_end - pixel);
            if (copied) unfold_pixels(group, at, pixels, begin, end, unfolded);
            const T* columns = copied ? unfolded : images + pixel * channels + group * c.source_channels + begin;
            Tile<T> tile{nullptr, 1, step, nullptr, copied ? kPitch<T> : channels, pixels, 1, 0,
                         pixel > slab_begin, nullptr, nullptr, 0};
            for (int64_t column = begin; column < end; column += kPanel<T>)
                for (int64_t part = 0; part < tiles; ++part) {
                    const int64_t filter = first + part * (last - first) / tiles;
                    const int64_t rows = first + (part + 1) * (last - first) / tiles - filter;
                    T* to[kRows];
                    for (int64_t row = 0; row < rows; ++row) to[row] = slab_sums + (filter + row) * pitch();
                    tile.left = gradient + pixel * step + group * filters() + filter;
                    tile.right = columns + (column - begin);
                    tile.to = to;
                    tile.column = column;
                    compute_tile<>(tile, rows, end - column > kLanes<T> ? kPanel<T> : kLanes<T>);
                }
        }
    }

    void unfold_pixels(int64_t group, Position& at, int64_t pixels, int64_t begin, int64_t end, T* to) const {
        for (int64_t row = 0; row < pixels; row += kMostWindows) {
            const int64_t rows = smaller(kMostWindows, pixels - row);
            Windows windows;
            for (int64_t window = 0; window < rows; ++window, advance(c, at)) windows.add(c, group, at, kLanes<T>);
            unfold(c, images, group, windows, begin, end, to + row * kPitch<T>);
        }
    }

    void all(int threads) const {
        const int64_t depth = c.depth();
        const int64_t filter_blocks = ceil_div(filters(), kBlock<T>);
        const int64_t columns = round_up(ceil_div(depth, ceil_div(depth, kBlock<T>)), kPanel<T>);
        const int64_t column_blocks = ceil_div(depth, columns);
        with_team(threads, [&](Team& team) {
            team.share(slabs() * c.groups * filter_blocks * column_blocks, [&](int64_t item) {
                const int64_t panel = item % column_blocks, part = item / column_blocks % filter_blocks;
                const int64_t slab_of_group = item / column_blocks / filter_blocks;
                block(slab_of_group / c.groups, slab_of_group % c.groups, part * filters() / filter_blocks,
                      (part + 1) * filters() / filter_blocks, panel * columns, smaller(depth, (panel + 1) * columns));
            });
            team.share(c.groups * filters(), [&](int64_t filter) { add_slabs(filter); });
        });
    }

    // The slabs' sums of one filter; without the columns that only fill the last panel.
    void add_slabs(int64_t filter) const {
        const T* from = workspace + filter * pitch();
        for (int64_t column = 0; column < c.depth(); column += kLanes<T>) {
            Vector<T> sum = load(from + column);
            for (int64_t slab_index = 1; slab_index < slabs(); ++slab_index)
                sum += load(from + slab_index * sums() + column);
            store_some(out + filter * c.depth() + column, sum, c.depth() - column);
        }
    }
};

}  // namespace
}  // namespace engine::ENGINE_ISA
