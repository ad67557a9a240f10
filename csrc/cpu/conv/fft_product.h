// The products of spectra: at each frequency a complex matrix product, with three real products for every complex one.
//
// Gauss: (a + ib)(c + id) = (p - b(c + d)) + i(p + a(d - c)) with p = (a + b)c. Both matrices are first taken apart
// into the three real ones that are multiplied.
#pragma once

#include "../gemm.h"

namespace engine::ENGINE_ISA {
namespace {

// One frequency of many spectra: a complex matrix, each row `vectors` pairs of a vector of real parts and one of
// imaginary parts.
template <typename T>
struct ComplexMatrix {
    T* data;
    int64_t rows, vectors;
    int64_t stride;  // elements between rows
};

// The left matrix taken apart: real matrices (a + b, a, b), whose element (row, k) lies at row * row_stride +
// k * depth_stride.
template <typename T>
struct LeftFactor {
    const T* data;
    int64_t plane, row_stride, depth_stride;
};

// to[plane][row][vector] for the three planes of a left factor.
template <typename T>
void take_left_apart(ComplexMatrix<const T> from, T* to) {
    constexpr int lanes = kLanes<T>;
    const int64_t width = from.vectors * lanes, plane = from.rows * width;
    for (int64_t row = 0; row < from.rows; ++row)
        for (int64_t v = 0; v < from.vectors; ++v) {
            const T* pair = from.data + row * from.stride + v * 2 * lanes;
            const Vector<T> a = load(pair), b = load(pair + lanes);
            T* at = to + row * width + v * lanes;
            store(at, a + b);
            store(at + plane, a);
            store(at + 2 * plane, b);
        }
}

// to[plane][row][kPanel]: the two vectors from `first` on of a right factor, as (c, d - c, -(c + d)).
template <typename T>
void take_right_apart(ComplexMatrix<const T> from, int64_t first, T* to) {
    constexpr int lanes = kLanes<T>;
    const int64_t plane = from.rows * kPanel<T>;
    const bool two = first + 1 < from.vectors;
    for (int64_t row = 0; row < from.rows; ++row)
        for (int half = 0; half < 2; ++half) {
            const T* pair = from.data + row * from.stride + (first + (two ? half : 0)) * 2 * lanes;
            const Vector<T> c = load(pair), d = load(pair + lanes);
            T* at = to + row * kPanel<T> + half * lanes;
            store(at, c);
            store(at + plane, d - c);
            store(at + 2 * plane, -(c + d));
        }
}

// Memory that the next product will read, to be fetched into the cache step by step while this one computes: the
// spectra of all frequencies are far larger than the caches near the core.
struct Ahead {
    const char *left, *right;
    int64_t left_step, right_step;

    ENGINE_INLINE void fetch() {
        __builtin_prefetch(left, 0, 2);
        __builtin_prefetch(right, 0, 2);
        left += left_step;
        right += right_step;
    }
};

template <typename T, int rows>
ENGINE_INLINE void add_product(const T* a, int64_t row_stride, int64_t depth_stride, const T* panel, int64_t depth,
                               Ahead& ahead, Vector<T> (&sums)[rows][2]) {
    for (int64_t k = 0; k < depth; ++k, a += depth_stride, panel += kPanel<T>) {
        ahead.fetch();
        const Vector<T> first = load(panel), second = load(panel + kLanes<T>);
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            const Vector<T> value = broadcast(a[row * row_stride]);
            sums[row][0] += value * first;
            sums[row][1] += value * second;
        }
    }
}

// Two vectors (or only the first) of each of `rows` rows at out, as a ComplexMatrix lies.
template <typename T, int rows>
void multiply_complex_rows(LeftFactor<T> left, const T* panel, int64_t depth, bool accumulate, bool two, Ahead ahead,
                           T* out, int64_t out_stride) {
    constexpr int lanes = kLanes<T>;
    const int64_t panel_plane = depth * kPanel<T>;
    Vector<T> common[rows][2] = {};
    add_product<T, rows>(left.data, left.row_stride, left.depth_stride, panel, depth, ahead, common);
    for (int part = 0; part < 2; ++part) {  // imaginary, then real
        Vector<T> sums[rows][2];
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) sums[row][0] = common[row][0], sums[row][1] = common[row][1];
        add_product<T, rows>(left.data + (part + 1) * left.plane, left.row_stride, left.depth_stride,
                             panel + (part + 1) * panel_plane, depth, ahead, sums);
        T* to = out + (part == 0 ? lanes : 0);
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row, to += out_stride) {
            store(to, accumulate ? load(to) + sums[row][0] : sums[row][0]);
            if (two) store(to + 2 * lanes, accumulate ? load(to + 2 * lanes) + sums[row][1] : sums[row][1]);
        }
    }
}

template <typename T>
void multiply_complex(int64_t rows, LeftFactor<T> left, const T* panel, int64_t depth, bool accumulate, bool two,
                      Ahead ahead, T* out, int64_t out_stride) {
#define ENGINE_CASE(n) \
    case n: \
        if constexpr (n <= kRows) \
            multiply_complex_rows<T, n>(left, panel, depth, accumulate, two, ahead, out, out_stride); \
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

// Elements of temporary memory of product().
template <typename T>
constexpr int64_t product_elements(int64_t left_rows, int64_t left_vectors, int64_t depth) {
    return 3 * (left_rows * left_vectors * kLanes<T> + depth * kPanel<T>);
}

// out = (accumulate ? out : 0) + left x right, or with `transposed` the transpose of left x right. The rows of `out`
// may lie over those of `left`, whose values are read before the first is written. next_left and next_right: the data
// of the matrices, of the same form, that are multiplied next.
template <typename T>
void product(ComplexMatrix<const T> left, bool transposed, ComplexMatrix<const T> right, ComplexMatrix<T> out,
             bool accumulate, const T* next_left, const T* next_right, T* memory) {
    const int64_t width = left.vectors * kLanes<T>, plane = left.rows * width, depth = right.rows;
    // The rows of the result in as equal parts as can be, none of more than kRows.
    const int64_t parts = ceil_div(out.rows, kRows), calls = parts * ceil_div(right.vectors, 2);
    const int64_t left_bytes = left.rows * left.stride * sizeof(T) / calls;
    const int64_t right_bytes = right.rows * right.stride * sizeof(T) / calls;
    Ahead ahead = {reinterpret_cast<const char*>(next_left), reinterpret_cast<const char*>(next_right),
                   left_bytes / (3 * depth), right_bytes / (3 * depth)};
    T* panel = memory + 3 * plane;
    take_left_apart<T>(left, memory);
    for (int64_t v = 0; v < right.vectors; v += 2) {
        take_right_apart<T>(right, v, panel);
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t row = out.rows * part / parts, end = out.rows * (part + 1) / parts;
            const LeftFactor<T> rows = transposed ? LeftFactor<T>{memory + row, plane, 1, width}
                                                  : LeftFactor<T>{memory + row * width, plane, width, 1};
            multiply_complex(end - row, rows, panel, depth, accumulate, v + 1 < right.vectors, ahead,
                             out.data + row * out.stride + v * 2 * kLanes<T>, out.stride);
            ahead.left += left_bytes;
            ahead.right += right_bytes;
        }
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
