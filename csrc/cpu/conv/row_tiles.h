// Groups of results whose rows of the unfolded matrix are multiplied together: tiles of up to kRows.
//
// Where the windows of neighbours lie inside the source, their rows are equally spaced there and are read in place.
// All others, at the borders of images above all, are gathered into tiles whose rows are copied.
#pragma once

#include "../gemm.h"
#include "unfold.h"

namespace engine::ENGINE_ISA {
namespace {

// Full tiles of results that a thread works on at a time, and neighbours that are worth a tile read in place.
constexpr int64_t kTileBlock = 8;
constexpr int64_t kShortestRun = kRows / 2 + 1;

template <typename T>
struct RowTile {
    int64_t rows;
    const T* start;          // the first row in the source, others c.x.stride pixels apart; or null
    const Windows* windows;  // if null: what to copy
    T* to[kRows];            // the rows of the target
};

// Whether neighbours inside the source are read in place. Rows half a page or more apart get into one another's way in
// the cache, the more the more taps read them; short spans, unless they are whole rows of the kernel, which a tile
// follows, are worth no tile each. And every stretch has to be one tile's: which results are copied depends on where
// blocks end, and may not change the rounding.
template <typename T>
bool readable_in_place(const Correlation& c) {
    const int64_t step = c.x.stride * c.groups * c.source_channels * static_cast<int64_t>(sizeof(T));
    if (c.depth() == 0 || step >= (c.dense() ? 4096 : 2048)) return false;
    const Spans spans(c);
    const int64_t length = stretch<T>(c), span = spans.elements;
    const bool rows = spans.taps == c.x.taps && length % span == 0;
    const bool one_tile = rows || span % length == 0 || span == c.depth();
    return c.dense() || (one_tile && span >= (rows ? 8 : 128));
}

template <typename T>
struct RowTiles {
    RowTile<T> tiles[3 * kTileBlock];  // runs of kShortestRun or more make at most two tiles per kRows results
    Windows windows[kTileBlock];
    int64_t count = 0, copied = 0;

    // The results [first, last), at most kTileBlock * kRows.
    RowTiles(const Correlation& c, int64_t group, const T* source, T* target, int64_t first, int64_t last) {
        const bool in_place = readable_in_place<T>(c);
        RowTile<T>* open = nullptr;  // the tile that copied rows are added to
        Position at = position(c, first);
        while (first < last) {
            const int64_t run = in_place ? run_at(c, at, last - first) : 0;
            if (run >= kShortestRun) {
                add_run(c, group, at, run, source, target);
                first += run;
                at.x += run - 1;
                advance(c, at);
                continue;
            }
            if (!open || open->rows == kRows) {
                open = &tiles[count++];
                open->rows = 0;
                open->start = nullptr;
                open->windows = &windows[copied++];
            }
            windows[copied - 1].add(c, group, at, kLanes<T>);
            open->to[open->rows++] = target + target_offset(c, at, group);
            advance(c, at);
            ++first;
        }
    }

    // Neighbours from here on that can be read in place.
    static int64_t run_at(const Correlation& c, const Position& at, int64_t most) {
        if (c.dense()) return most;
        const bool inside = at.y >= c.y.inside_begin() && at.y < c.y.inside_end() && at.x >= c.x.inside_begin();
        return inside ? smaller(most, c.x.inside_end() - at.x) : 0;
    }

    void add_run(const Correlation& c, int64_t group, const Position& at, int64_t run, const T* source, T* target) {
        const int64_t y = at.y * c.y.stride + c.y.offset, x = at.x * c.x.stride + c.x.offset;
        const int64_t pixel = (at.image * c.y.source_size + y) * c.x.source_size + x;
        const T* start = source + (pixel * c.groups + group) * c.source_channels;
        T* to = target + target_offset(c, at, group);
        const int64_t to_step = c.x.step * c.groups * c.target_channels, parts = ceil_div(run, kRows);
        for (int64_t part = 0; part < parts; ++part) {
            RowTile<T>& tile = tiles[count++];
            const int64_t first = part * run / parts;
            tile.rows = (part + 1) * run / parts - first;
            tile.start = start + first * c.x.stride * c.groups * c.source_channels;
            tile.windows = nullptr;
            for (int64_t row = 0; row < tile.rows; ++row) tile.to[row] = to + (first + row) * to_step;
        }
    }
};

}  // namespace
}  // namespace engine::ENGINE_ISA
