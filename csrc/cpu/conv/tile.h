// The inner loop of the implicit products: a tile of sums held in registers, a few rows by one or two vectors.
//
// Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", TOMS 2008. Unlike in cpu/gemm.h both
// operands may lie at any steps, and every row of results has a pointer of its own, so that tiles may run over the
// ends of image rows.
#pragma once

#include "../gemm.h"

namespace engine::ENGINE_ISA {
namespace {

// One tile: to[row][column] = sum over k < depth of left(row, k) * right(k, column), plus what is there if
// `accumulate`, else plus bias[column] unless null. left(row, k) = left[row * row_step + k * left_step]; right(k, 0)
// = right[k * right_step], and whole vectors are read from there.
template <typename T>
struct Tile {
    const T* left;
    int64_t row_step, left_step;
    const T* right;
    int64_t right_step;
    int64_t depth;
    int64_t parts, part_step;  // `parts` times that depth; each part of `left` lies part_step after the one before
    bool accumulate;
    const T* bias;
    T* const* to;  // a pointer per row
    int64_t column;  // where the tile begins in each of them
};

// Products ahead of which operands are called for: what lies at large steps no processor foresees by itself.
constexpr int64_t kAhead = 32;

template <int rows, int vectors, typename T>
ENGINE_INLINE void sum_products(const Tile<T>& tile, Vector<T> (&sums)[rows][vectors]) {
    // x86 addresses base + step and base + 2 * step, so that a third of the pointers is enough, and all stay in
    // registers.
    constexpr int kPointers = (rows + 2) / 3;
    const int64_t step = tile.row_step, left_step = tile.left_step, right_step = tile.right_step;
    const T* left[kPointers];
    for (int p = 0; p < kPointers; ++p) left[p] = tile.left + 3 * p * step;
    const T* right = tile.right;
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row)
        for (int v = 0; v < vectors; ++v) sums[row][v] = Vector<T>{};
    for (int64_t part = tile.parts; part > 0; --part) {
        for (int64_t k = tile.depth; k > 0; --k, right += right_step) {
            prefetch(left[0], kAhead * left_step);
            for (int v = 0; v < vectors; ++v) prefetch(right, kAhead * right_step + v * kLanes<T>);
            Vector<T> factors[vectors];
            for (int v = 0; v < vectors; ++v) factors[v] = load(right + v * kLanes<T>);
#pragma GCC unroll 16
            for (int row = 0; row < rows; ++row) {
                const Vector<T> value = broadcast(left[row / 3][row % 3 * step]);
                for (int v = 0; v < vectors; ++v) sums[row][v] += value * factors[v];
            }
            for (int p = 0; p < kPointers; ++p) left[p] += left_step;
        }
        if (part > 1)
            for (int p = 0; p < kPointers; ++p) left[p] += tile.part_step - tile.depth * left_step;
    }
}

template <int rows, int vectors, typename T>
ENGINE_INLINE void compute(const Tile<T>& tile, int64_t columns) {
    constexpr int lanes = kLanes<T>;
    Vector<T> sums[rows][vectors];
    sum_products(tile, sums);
    if (columns == vectors * lanes) {
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row)
            for (int v = 0; v < vectors; ++v) {
                T* place = tile.to[row] + tile.column + v * lanes;
                if (tile.accumulate)
                    sums[row][v] += load(place);
                else if (tile.bias)
                    sums[row][v] += load(tile.bias + v * lanes);
                store(place, sums[row][v]);
            }
        return;
    }
    // A last, narrower panel: by way of the stack, for sums that are indexed by a variable leave the registers.
    T narrow[rows][vectors * lanes];
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row)
        for (int v = 0; v < vectors; ++v) store(narrow[row] + v * lanes, sums[row][v]);
    for (int row = 0; row < rows; ++row) {
        T* place = tile.to[row] + tile.column;
        for (int64_t column = 0; column < columns; ++column)
            place[column] = narrow[row][column] + (tile.accumulate ? place[column] : tile.bias ? tile.bias[column] : 0);
    }
}

// Computes a tile of 1 to kRows rows and 1 to kPanel columns.
template <int most = kRows, typename T>
inline void compute_tile(const Tile<T>& tile, int64_t rows, int64_t columns) {
    if constexpr (most > 1)
        if (rows < most) return compute_tile<most - 1>(tile, rows, columns);
    if (columns > kLanes<T>)
        compute<most, 2>(tile, columns);
    else
        compute<most, 1>(tile, columns);
}

}  // namespace
}  // namespace engine::ENGINE_ISA
