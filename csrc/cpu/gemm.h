// The inner loop of every matrix product here: a few rows times a panel two vectors wide, sums held in registers.
//
// Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", TOMS 2008. The right-hand matrix is
// packed into panels: panel[depth][kPanel<T>], zeros where it is narrower. The left-hand one is read as it lies, one
// broadcast element at a time, so its rows need be neither packed nor adjacent.
#pragma once

#include "../simd/vector.h"

namespace engine::ENGINE_ISA {
namespace {

// Columns of a panel, and rows whose sums fill the registers: 14 x 2 sums, 2 panel vectors and a broadcast of 32.
template <typename T>
constexpr int kPanel = 2 * kLanes<T>;
constexpr int kRows = kVectorRegisters == 32 ? 14 : 6;

// What a product does besides, in each of its steps: nothing, or asking for memory that a later product will read.
struct NothingBesides {
    ENGINE_INLINE void operator()(int64_t) const {}
};
template <typename T>
struct FetchAhead {
    const T* base;
    int64_t offset, elements_per_step;
    ENGINE_INLINE void operator()(int64_t step) const { prefetch(base, offset + step * elements_per_step); }
};

// Rows that a block of the left-hand matrix is a multiple of, so that few calls are for fewer than kRows.
template <typename T, int rows, typename Besides>
ENGINE_INLINE void multiply_rows(const T* a, int64_t a_stride, const T* panel, int64_t depth, bool accumulate, T* c,
                                 int64_t c_stride, int64_t columns, Besides besides) {
    constexpr int lanes = kLanes<T>;
    Vector<T> sums[rows][2];
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) sums[row][0] = sums[row][1] = Vector<T>{};
    for (int64_t k = 0; k < depth; ++k, ++a, panel += kPanel<T>) {
        const Vector<T> first = load(panel), second = load(panel + lanes);
        besides(k);
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            const Vector<T> value = broadcast(a[row * a_stride]);
            sums[row][0] += value * first;
            sums[row][1] += value * second;
        }
    }
    if (columns >= kPanel<T>) {
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            T* to = c + row * c_stride;
            store(to, accumulate ? load(to) + sums[row][0] : sums[row][0]);
            store(to + lanes, accumulate ? load(to + lanes) + sums[row][1] : sums[row][1]);
        }
        return;
    }
    for (int row = 0; row < rows; ++row) {
        T* to = c + row * c_stride;
        for (int half = 0; half < 2; ++half) {
            const int64_t left = larger(0, columns - half * lanes);
            const Vector<T> before = accumulate ? load_some(to + half * lanes, left) : Vector<T>{};
            store_some(to + half * lanes, before + sums[row][half], left);
        }
    }
}

// c[rows][columns] = (accumulate ? c : 0) + a[rows][depth] x panel[depth][kPanel]; rows: 1 to kRows, columns: 1 to
// kPanel, strides in elements between rows.
template <typename T, typename Besides = NothingBesides>
inline void multiply(int64_t rows, const T* a, int64_t a_stride, const T* panel, int64_t depth, bool accumulate, T* c,
                     int64_t c_stride, int64_t columns = kPanel<T>, Besides besides = {}) {
#define ENGINE_CASE(n)                                                                                         \
    case n:                                                                                                    \
        if constexpr (n <= kRows)                                                                              \
            multiply_rows<T, n>(a, a_stride, panel, depth, accumulate, c, c_stride, columns, besides);         \
        return;
    switch (rows) {
        ENGINE_CASE(1)
        ENGINE_CASE(2)
        ENGINE_CASE(3)
        ENGINE_CASE(4)
        ENGINE_CASE(5)
        ENGINE_CASE(6)
        ENGINE_CASE(7)
        ENGINE_CASE(8)
        ENGINE_CASE(9)
        ENGINE_CASE(10)
        ENGINE_CASE(11)
        ENGINE_CASE(12)
        ENGINE_CASE(13)
        ENGINE_CASE(14)
    }
#undef ENGINE_CASE
}

}  // namespace
}  // namespace engine::ENGINE_ISA
