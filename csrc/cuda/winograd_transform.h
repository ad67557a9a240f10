// Winograd's transforms of tiles in the registers of one thread: the matrices of ../simd/cook_toom.h, unrolled while the
// compiler runs. For F(outputs x outputs, taps x taps), with size = outputs + taps - 1,
//
//   transform_input<outputs, taps>(inputs, places)       places  [size][size]        = B^T inputs [size][size] B
//   transform_filter<outputs, taps>(filter, places)      places  [size][size]        = G filter [taps][taps] G^T
//   transform_output<outputs, taps>(places, results)     results [outputs][outputs]  = A^T places [size][size] A
//
// and the correlation of inputs and filter is transform_output of the product, place by place, of the other two.
//   forward, and the gradient of the images (its filter rotated):  F(m, 3), so transform_input<m, 3> and so on
//   the gradient of the weight:  F(3, m), where the gradient of the output, in tiles of m x m, is the filter and the
//   weight is the output. transform_input<3, m> is the very same function as transform_input<m, 3>.
//
// Only what is not zero is multiplied, and nothing by 1 or -1. The points come in pairs p, -p, whose rows are even +
// odd part and even - odd part of one polynomial; an output needs only the sum and the difference of a pair.
#pragma once

#include "../simd/cook_toom.h"
#include "device.h"

namespace engine {
namespace cuda {
namespace {

// The coefficients of one row in columns first, first + step, ... What the fractions say is settled in the members here,
// for code of the GPU cannot call the functions of cook_toom.h.
template <const auto& matrix, int row, int first, int step>
struct RowPart {
    static constexpr int width = sizeof(matrix.at[row]) / sizeof(matrix.at[row][0]);

    static constexpr int last_that_is_not_zero() {
        int found = first;
        for (int column = first; column < width; column += step)
            if (matrix.at[row][column] != 0) found = column;
        return found;
    }
    static constexpr int last = last_that_is_not_zero();

    // A factor of the whole part, taken out so that one of the coefficients that remain is 1.
    static constexpr Rational common() {
        for (int column = first; column < width; column += step)
            if (matrix.at[row][column] == 1) return 1;
        return matrix.at[row][last];
    }
    static constexpr double factor = common().value();

    template <int column>
    static constexpr double coefficient = (matrix.at[row][column] / common()).value();

    // The part from `column` on, divided by its factor, times the inputs.
    template <int column = first, typename T>
    static __device__ __forceinline__ T sum(const T* in) {
        constexpr double number = coefficient<column>;
        if constexpr (column == last) {
            return number == 1 ? in[column] : static_cast<T>(number) * in[column];
        } else {
            const T rest = sum<column + step>(in);
            if constexpr (number == 0)
                return rest;
            else if constexpr (number == 1)
                return rest + in[column];
            else if constexpr (number == -1)
                return rest - in[column];
            else
                return rest + static_cast<T>(number) * in[column];
        }
    }

    template <typename T>
    static __device__ __forceinline__ T factor_times(T value) {
        if constexpr (factor == 1)
            return value;
        else if constexpr (factor == -1)
            return -value;
        else
            return static_cast<T>(factor) * value;
    }
};

// Multiplies by row `row` of a matrix.
template <const auto& matrix, int row, typename T>
__device__ __forceinline__ T whole_row(const T* in) {
    using Row = RowPart<matrix, row, 0, 1>;
    return Row::factor_times(Row::sum(in));
}

// Multiplies by a matrix whose rows belong to the points, rows 2q + 1 and 2q + 2 to pair q.
template <const auto& matrix, int size, int row = 0, typename T>
__device__ __forceinline__ void evaluate(const T* in, T* out) {
    if constexpr (row == 0 || row == size - 1) {
        out[row] = whole_row<matrix, row>(in);
        if constexpr (row == 0) evaluate<matrix, size, 1>(in, out);
    } else {
        using Even = RowPart<matrix, row, 0, 2>;
        using Odd = RowPart<matrix, row, 1, 2>;
        const T even = Even::factor_times(Even::sum(in));
        const T odd = Odd::factor_times(Odd::sum(in));
        out[row] = even + odd;
        out[row + 1] = even - odd;
        evaluate<matrix, size, row + 2>(in, out);
    }
}

// B^T of one dimension.
template <int outputs, int taps>
struct InputLine {
    static constexpr int from = outputs + taps - 1, to = from;

    template <typename T>
    static __device__ __forceinline__ void apply(const T* in, T* out) {
        evaluate<CookToom<outputs, taps>::input, to>(in, out);
    }
};

// G of one dimension.
template <int outputs, int taps>
struct FilterLine {
    static constexpr int from = taps, to = outputs + taps - 1;

    template <typename T>
    static __device__ __forceinline__ void apply(const T* in, T* out) {
        evaluate<CookToom<outputs, taps>::filter, to>(in, out);
    }
};

// A^T of one dimension. Even powers of a pair's points meet the sum of its two products, odd ones the difference.
template <int outputs, int taps>
struct OutputLine {
    static constexpr int from = outputs + taps - 1, to = outputs, pairs = (from - 2) / 2;

    // The columns of A^T without the second one of each pair.
    static constexpr RationalMatrix<outputs, pairs + 2> halved() {
        RationalMatrix<outputs, pairs + 2> result{};
        for (int row = 0; row < outputs; ++row)
            for (int column = 0; column < pairs + 2; ++column)
                result.at[row][column] = CookToom<outputs, taps>::output.at[row][column ? 2 * column - 1 : 0];
        return result;
    }
    static constexpr RationalMatrix<outputs, pairs + 2> matrix = halved();

    template <typename T>
    static __device__ __forceinline__ void apply(const T* in, T* out) {
        T even[pairs + 2], odd[pairs + 2];
        even[0] = odd[0] = in[0];
        even[pairs + 1] = odd[pairs + 1] = in[from - 1];
        ENGINE_UNROLL
        for (int pair = 0; pair < pairs; ++pair) {
            even[pair + 1] = in[2 * pair + 1] + in[2 * pair + 2];
            odd[pair + 1] = in[2 * pair + 1] - in[2 * pair + 2];
        }
        rows(even, odd, out);
    }

    template <int row = 0, typename T>
    static __device__ __forceinline__ void rows(const T* even, const T* odd, T* out) {
        out[row] = whole_row<matrix, row>(row % 2 ? odd : even);
        if constexpr (row + 1 < outputs) rows<row + 1>(even, odd, out);
    }
};

// Transforms the columns and then the rows. `out` may be the array `in`.
template <typename Line, typename T>
__device__ __forceinline__ void transform_both(const T (&in)[Line::from][Line::from], T (&out)[Line::to][Line::to]) {
    T half[Line::to][Line::from];
    ENGINE_UNROLL
    for (int j = 0; j < Line::from; ++j) {
        T column[Line::from], result[Line::to];
        ENGINE_UNROLL
        for (int i = 0; i < Line::from; ++i) column[i] = in[i][j];
        Line::apply(column, result);
        ENGINE_UNROLL
        for (int i = 0; i < Line::to; ++i) half[i][j] = result[i];
    }
    ENGINE_UNROLL
    for (int i = 0; i < Line::to; ++i) Line::apply(half[i], out[i]);
}

template <int outputs, int taps, typename T>
__device__ __forceinline__ void transform_input(const T (&inputs)[outputs + taps - 1][outputs + taps - 1],
                                                T (&places)[outputs + taps - 1][outputs + taps - 1]) {
    transform_both<InputLine<outputs, taps>>(inputs, places);
}

template <int outputs, int taps, typename T>
__device__ __forceinline__ void transform_filter(const T (&filter)[taps][taps],
                                                 T (&places)[outputs + taps - 1][outputs + taps - 1]) {
    transform_both<FilterLine<outputs, taps>>(filter, places);
}

template <int outputs, int taps, typename T>
__device__ __forceinline__ void transform_output(const T (&places)[outputs + taps - 1][outputs + taps - 1],
                                                 T (&results)[outputs][outputs]) {
    transform_both<OutputLine<outputs, taps>>(places, results);
}

}  // namespace
}  // namespace cuda
}  // namespace engine
