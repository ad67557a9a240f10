// Products of whole matrices that lie in memory, from the tiles of cpu/gemm.h.
#pragma once

#include "../gemm.h"
#include "../team.h"

namespace engine::ENGINE_ISA {
namespace {

// Rows of panels multiplied at a time, so that a panel stays in the first cache.
constexpr int64_t kPanelRows = 256;

inline int64_t panels_elements(int64_t rows, int64_t columns, int64_t panel) { return rows * round_up(columns, panel); }

// Packs matrix[rows][columns] as multiply() wants it: [columns / kPanel][rows][kPanel], zeros beyond the last column.
// Element (r, c) lies at r * row_step + c * column_step, so a transposed matrix is packed just so.
template <typename T>
void pack(const T* matrix, int64_t rows, int64_t columns, int64_t row_step, int64_t column_step, T* panels,
          int threads) {
    share(threads, ceil_div(columns, kPanel<T>), [&](int64_t panel) {
        const int64_t first = panel * kPanel<T>;
        const int64_t used = smaller(kPanel<T>, columns - first);
        T* to = panels + first * rows;
        for (int64_t row = 0; row < rows; ++row, to += kPanel<T>) {
            const T* from = matrix + row * row_step + first * column_step;
            for (int64_t column = 0; column < used; ++column) to[column] = from[column * column_step];
            for (int64_t column = used; column < kPanel<T>; ++column) to[column] = 0;
        }
    });
}

// c[rows][columns] = (accumulate ? c : 0) + a[rows][depth] x the packed matrix[depth][columns]; steps between rows.
template <typename T>
void product(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_step, const T* panels,
             bool accumulate, T* c, int64_t c_step, int threads) {
    const int64_t tiles = ceil_div(rows, kRows);
    share(threads, smaller(tiles, threads), [&](int64_t part) {
        const int64_t parts = smaller(tiles, threads);
        const int64_t first = part * tiles / parts * kRows, last = smaller(rows, (part + 1) * tiles / parts * kRows);
        for (int64_t k = 0; k < depth; k += kPanelRows)
            for (int64_t column = 0; column < columns; column += kPanel<T>)
                for (int64_t row = first; row < last; row += kRows)
                    multiply(smaller(kRows, last - row), a + row * a_step + k, a_step,
                             panels + column * depth + k * kPanel<T>, smaller(kPanelRows, depth - k),
                             accumulate || k > 0, c + row * c_step + column, c_step,
                             smaller(kPanel<T>, columns - column));
    });
}

}  // namespace
}  // namespace engine::ENGINE_ISA
