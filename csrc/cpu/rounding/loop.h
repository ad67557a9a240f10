// Which elements a rounding kernel visits, with which random bits: all it has to say itself is what becomes of a vector.
//
// A kernel is a class Rounder, made for each part of the work from the call, with
//   apply(index, from, to, draws, element, stride)  rounds the lanes from..to-1 (all of them: 0..kWords) of the vector
//                       whose lane 0 is at `index` of memory and is element number `element`, which for further lanes
//                       grows by `stride`
//   counts              what it has counted, a Counts
#pragma once

#include "../team.h"
#include "draws.h"

namespace engine::ENGINE_ISA {
namespace {

// What one part of the work has seen; lanes of vectors of T.
template <typename T>
struct Counts {
    Bits<T> saturated{}, upper_half{}, zeroed{}, nonfinite{};

    void add_to(int64_t* counts, int64_t seen) const {
        add(counts + kSeen, seen);
        add(counts + kSaturated, sum(saturated));
        add(counts + kUpperHalf, sum(upper_half));
        add(counts + kZeroed, sum(zeroed));
        add(counts + kNonfinite, sum(nonfinite));
    }

private:
    static void add(int64_t* to, int64_t count) { __atomic_fetch_add(to, count, __ATOMIC_RELAXED); }
    static int64_t sum(Bits<T> counts) {
        int64_t result = 0;
        for (int lane = 0; lane < kLanes<T>; ++lane) result += static_cast<int64_t>(counts[lane]);
        return result;
    }
};

constexpr int64_t kGroups = 256;  // of a part of the work: far fewer elements than a lane of Counts can count
constexpr int64_t kTileRows = 256;

// Elements in the order of memory.
template <typename Rounder>
void round_in_order(const RoundingCall& call, const RoundKeys& keys, uint64_t step, int64_t part) {
    const RoundingOrder& order = call.order;
    const int64_t count = order.batches * order.rows * order.columns;
    const int64_t groups = (order.first + count - 1) / kDrawGroup + 1;
    int64_t group = order.first / kDrawGroup + part * kGroups;
    const int64_t end = smaller(group + kGroups, groups), begun = larger(group * kDrawGroup, order.first);
    Rounder rounder(call, step);
    for (; group < end; ++group) {
        const int64_t element = group * kDrawGroup, index = element - order.first;
        const bool whole = index >= 0 && index + kDrawGroup <= count;
#pragma GCC unroll 1
        for (int first = 0; first < kDrawLanes; first += kWords) {
            const auto visit = [&](int row, Words draws) {
                const int64_t ahead = row * kDrawLanes + first;
                if (whole) return rounder.apply(index + ahead, 0, kWords, draws, element + ahead, 1);
                const int64_t from = smaller(kWords, larger(0, -(index + ahead)));
                const int64_t to = larger(from, smaller(kWords, count - (index + ahead)));
                rounder.apply(index + ahead, static_cast<int>(from), static_cast<int>(to), draws, element + ahead, 1);
            };
            if constexpr (Rounder::kStochastic) {
                const Draws draws(keys, static_cast<uint64_t>(group), first, step);
#pragma GCC unroll 8
                for (int row = 0; row < kDrawRows; ++row) visit(row, draws.row(row));
            } else {
#pragma GCC unroll 8
                for (int row = 0; row < kDrawRows; ++row) visit(row, Words{});
            }
        }
    }
    if (call.counts) rounder.counts.add_to(call.counts, smaller(end * kDrawGroup, order.first + count) - begun);
}

// A tile of matrices whose elements are numbered down the columns: all rows of kDrawLanes columns or fewer.
struct Tile {
    int64_t index, element;  // of its first element, in memory and as it is numbered
    int64_t columns;

    Tile(const RoundingOrder& order, int64_t number) {
        const int64_t across = ceil_div(order.columns, kDrawLanes);
        const int64_t before = number / across * order.rows * order.columns, left = number % across * kDrawLanes;
        columns = smaller(kDrawLanes, order.columns - left);
        index = before + left;
        element = order.first + before + left * order.rows;
    }
};

inline int64_t tiles_of(const RoundingOrder& order) { return order.batches * ceil_div(order.columns, kDrawLanes); }
inline int64_t tiles_of_part(const RoundingOrder& order) {
    return larger(1, kGroups * kDrawGroup / (kDrawLanes * order.rows));
}

// Eight numbers from each of eight columns to eight rows: numbers of the upper and the lower half of the columns alternate,
// three times.
ENGINE_INLINE void transpose_eight(const uint16_t* const* columns, int64_t at, uint16_t (*rows)[kDrawLanes]) {
    typedef uint16_t Eight __attribute__((vector_size(16)));
    Eight lines[8];
    for (int line = 0; line < 8; ++line) std::memcpy(&lines[line], columns[line] + at, sizeof(Eight));
#pragma GCC unroll 3
    for (int turn = 0; turn < 3; ++turn) {
        Eight next[8];
#pragma GCC unroll 4
        for (int line = 0; line < 4; ++line) {
            next[2 * line] = __builtin_shufflevector(lines[line], lines[line + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            next[2 * line + 1] = __builtin_shufflevector(lines[line], lines[line + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        std::memcpy(lines, next, sizeof lines);
    }
    for (int line = 0; line < 8; ++line) std::memcpy(rows[line], &lines[line], sizeof(Eight));
}

// The random bits of a tile's rows, `count` from `top` on, transposed.
struct TileDraws {
    static constexpr int64_t kPitch = kTileRows + 2 * kDrawGroup;
    uint16_t drawn[kDrawLanes * kPitch], rows[kTileRows][kDrawLanes];

    TileDraws() : drawn{} {}

    void fill(const RoundKeys& keys, uint64_t step, const Tile& tile, int64_t all_rows, int64_t top, int64_t count) {
        // If all rows are wanted, the columns are one range of elements.
        const bool together = count == all_rows;
        const uint16_t* columns[kDrawLanes];
        for (int64_t column = 0; column < kDrawLanes; ++column) {
            const auto begin = static_cast<uint64_t>(tile.element + column * all_rows + top);
            if (column >= tile.columns)
                columns[column] = columns[0];
            else if (together && column > 0)
                columns[column] = columns[0] + column * count;
            else
                columns[column] = draw(keys, begin, together ? tile.columns * count : count, step, drawn + column * kPitch);
        }
        for (int64_t row = 0; row < count; row += 8)
            for (int64_t half = 0; half < tile.columns; half += 8)
                transpose_eight(columns + half, row, reinterpret_cast<uint16_t(*)[kDrawLanes]>(&rows[row][half]));
    }
};

// Elements down the columns of matrices.
template <typename Rounder>
void round_down_columns(const RoundingCall& call, const RoundKeys& keys, uint64_t step, int64_t part) {
    const RoundingOrder& order = call.order;
    const int64_t begin = part * tiles_of_part(order), end = smaller(begin + tiles_of_part(order), tiles_of(order));
    TileDraws draws;
    Rounder rounder(call, step);
    int64_t seen = 0;
    for (int64_t number = begin; number < end; ++number) {
        const Tile tile(order, number);
        for (int64_t top = 0; top < order.rows; top += kTileRows) {
            const int64_t rows = smaller(kTileRows, order.rows - top);
            draws.fill(keys, step, tile, order.rows, top, rows);
            for (int64_t row = 0; row < rows; ++row)
                for (int first = 0; first < tile.columns; first += kWords)
                    rounder.apply(tile.index + (top + row) * order.columns + first, 0,
                                  static_cast<int>(smaller(kWords, tile.columns - first)),
                                  load_halves(draws.rows[row] + first),
                                  tile.element + first * order.rows + top + row, order.rows);
        }
        seen += tile.columns * order.rows;
    }
    if (call.counts) rounder.counts.add_to(call.counts, seen);
}

template <typename Rounder>
void round_all(const RoundingCall& call, int threads) {
    const RoundingOrder& order = call.order;
    const int64_t count = order.batches * order.rows * order.columns;
    if (count == 0) return;
    const RoundKeys keys(call.key);
    const uint64_t step = Rounder::kStochastic ? static_cast<uint64_t>(*call.step) : 0;
    const bool down = Rounder::kStochastic && order.rows > 1 && order.columns > 1;
    const int64_t groups = (order.first + count - 1) / kDrawGroup + 1 - order.first / kDrawGroup;
    const int64_t parts = down ? ceil_div(tiles_of(order), tiles_of_part(order)) : ceil_div(groups, kGroups);
    const auto work = [&](int64_t part) {
        down ? round_down_columns<Rounder>(call, keys, step, part) : round_in_order<Rounder>(call, keys, step, part);
    };
    if (threads > parts) threads = static_cast<int>(parts);
    if (threads <= 1)
        for (int64_t part = 0; part < parts; ++part) work(part);
    else
        share(threads, parts, work);
}

}  // namespace
}  // namespace engine::ENGINE_ISA
