// A correlation as a matrix product whose left-hand matrix, the unfolded source, never exists as a whole.
//
// A thread takes a block of tiles of results and goes through the depth in stretches. A tile's rows of the unfolded
// source, a stretch of them, are multiplied with every panel of the kernel while they are in the first cache: read in
// place where the windows lie inside the source, else from a copy on the stack.
#pragma once

#include "kernel_panels.h"
#include "row_tiles.h"
#include "tile.h"

namespace engine::ENGINE_ISA {
namespace {

// Columns of results that a thread works on at a time: so that a stretch of their panels and the sums of a block of
// tiles lie in the second cache together.
constexpr int64_t kColumnBlock = 512;

template <typename T>
struct Product {
    const Correlation& c;
    const T *source, *panels, *bias;  // bias: or null
    T* target;

    // The results [first, last), at most kTileBlock * kRows, columns [begin, end) of one group.
    void block(int64_t group, int64_t first, int64_t last, int64_t begin, int64_t end) const {
        const int64_t depth = c.depth(), length = stretch<T>(c);
        alignas(64) T unfolded[kRows * kPitch<T>];
        const RowTiles<T> plan(c, group, source, target, first, last);
        for (int64_t from = 0; from == 0 || from < depth; from += length) {
            const int64_t count = smaller(length, depth - from);
            for (int64_t index = 0; index < plan.count; ++index) {
                const RowTile<T>& rows = plan.tiles[index];
                if (rows.start) {
                    read_in_place(rows, group, from, count, begin, end);
                    continue;
                }
                unfold(c, source, group, *rows.windows, from, from + count, unfolded);
                Tile<T> tile{unfolded, kPitch<T>, 1, nullptr, 0, count, 1, 0, from > 0, nullptr, rows.to, 0};
                columns(tile, rows.rows, group, from, count, begin, end);
            }
        }
    }

    // One tile, `count` elements of the depth from `from` on: a part of one kernel row, or several whole ones.
    void read_in_place(const RowTile<T>& rows, int64_t group, int64_t from, int64_t count, int64_t begin,
                       int64_t end) const {
        const int64_t pixel = c.groups * c.source_channels, step = c.x.stride * pixel;
        const Spans::Part part = Spans(c).part(c, from, from + count);
        const T* left = rows.start + (part.y * c.x.source_size + part.x) * pixel + part.skipped;
        Tile<T> tile{left, step, 1, nullptr, 0, part.count, count / part.count,
                     c.y.dilation * c.x.source_size * pixel, from > 0, nullptr, rows.to, 0};
        if (part.y == (c.y.taps - 1) * c.y.dilation)
            prefetch_rows(left, rows.rows, step, smaller(step, part.count));
        columns(tile, rows.rows, group, from, count, begin, end);
    }

    // Calls for what the next tile will read of the lowest pixels, the ones that no tile before has read: rows from
    // `first` on.
    static void prefetch_rows(const T* left, int64_t first, int64_t step, int64_t count) {
        for (int64_t row = first; row < first + kRows; ++row)
            for (int64_t e = 0; e < count; e += kLanes<T>) prefetch(left, row * step + e);
    }

    // The columns [begin, end) of a tile, for the stretch [from, from + count) of the depth.
    ENGINE_INLINE void columns(Tile<T>& tile, int64_t rows, int64_t group, int64_t from, int64_t count, int64_t begin,
                               int64_t end) const {
        const T* stretch_panels = panels + stretch_offset<T>(c, group, from);
        for (int64_t column = begin; column < end; column += kPanel<T>) {
            const int64_t width = smaller(kPanel<T>, end - column);
            tile.right_step = width > kLanes<T> ? kPanel<T> : kLanes<T>;
            tile.right = stretch_panels + column * count;
            tile.bias = bias ? bias + group * c.target_channels + column : nullptr;
            tile.column = column;
            compute_tile<>(tile, rows, width);
        }
    }

    void all(Team& team) const {
        const int64_t tiles = ceil_div(c.results(), kRows);
        const int64_t tile_blocks = smaller(tiles, round_up(ceil_div(tiles, kTileBlock), Team::threads()));
        const int64_t column_blocks = ceil_div(c.target_channels, kColumnBlock);
        team.share(c.groups * column_blocks * tile_blocks, [&](int64_t item) {
            const int64_t part = item % tile_blocks, begin = item / tile_blocks % column_blocks * kColumnBlock;
            block(item / tile_blocks / column_blocks, part * tiles / tile_blocks * kRows,
                  smaller(c.results(), (part + 1) * tiles / tile_blocks * kRows), begin,
                  smaller(begin + kColumnBlock, c.target_channels));
        });
    }
};

}  // namespace
}  // namespace engine::ENGINE_ISA
