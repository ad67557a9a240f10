// Winograd's transforms of one dimension, on vectors: the matrices of cook_toom.h unrolled by the compiler.
//
// Only what is not zero is multiplied, and nothing by 1 or -1. The points come in pairs p, -p, whose rows are
// even + odd part and even - odd part of one polynomial; the output needs only the sum and the difference of a pair.
// So 6 inputs take 12 operations instead of 30, and 8 take 24 instead of 56.
//
// Strides are counted in vectors. `out` may not overlap `in`. F(1, 1) copies: it is for the axis along which a filter
// is 1 wide.
#pragma once

#include "cook_toom.h"
#include "vector.h"

namespace engine::ENGINE_ISA {
namespace {

// The coefficients of one row in columns first, first + step, ...
template <const auto& matrix, int row, int first, int step>
struct RowPart {
    static constexpr int width = sizeof(matrix.at[row]) / sizeof(matrix.at[row][0]);

    // The last column that is not zero, or -1.
    static constexpr int last() {
        int found = -1;
        for (int column = first; column < width; column += step)
            if (matrix.at[row][column] != 0) found = column;
        return found;
    }

    // A factor of the whole part, taken out so that one of the coefficients that remain is 1.
    static constexpr Rational factor() {
        for (int column = first; column < width; column += step)
            if (matrix.at[row][column] == 1) return 1;
        return matrix.at[row][last()];
    }

    // The part from `column` on, divided by its factor, times the inputs.
    template <int column = first, typename T>
    static ENGINE_INLINE Vector<T> sum(const Vector<T>* in, int stride) {
        constexpr Rational coefficient = matrix.at[row][column] / factor();
        constexpr T number = static_cast<T>(coefficient.value());
        if constexpr (column == last()) {
            return coefficient == 1 ? in[column * stride] : in[column * stride] * broadcast(number);
        } else {
            const Vector<T> rest = sum<column + step, T>(in, stride);
            if constexpr (coefficient == 0) return rest;
            if constexpr (coefficient == 1) return rest + in[column * stride];
            if constexpr (coefficient == -1) return rest - in[column * stride];
            return rest + broadcast(number) * in[column * stride];
        }
    }

    template <typename T>
    static ENGINE_INLINE Vector<T> factor_times(Vector<T> value) {
        return factor() == 1 ? value : value * broadcast(static_cast<T>(factor().value()));
    }
};

template <const auto& matrix, int row, typename T>
ENGINE_INLINE Vector<T> whole_row(const Vector<T>* in, int stride) {
    using Row = RowPart<matrix, row, 0, 1>;
    return Row::template factor_times<T>(Row::template sum<0, T>(in, stride));
}

// Multiplies by a matrix whose rows belong to the points, rows 2q + 1 and 2q + 2 to pair q.
template <const auto& matrix, int size, int row = 0, typename T>
ENGINE_INLINE void evaluate(const Vector<T>* in, int in_stride, Vector<T>* out, int out_stride) {
    if constexpr (row == 0 || row == size - 1) {
        out[row * out_stride] = whole_row<matrix, row, T>(in, in_stride);
        if constexpr (row == 0) evaluate<matrix, size, 1, T>(in, in_stride, out, out_stride);
    } else {
        using Even = RowPart<matrix, row, 0, 2>;
        using Odd = RowPart<matrix, row, 1, 2>;
        const Vector<T> even = Even::template factor_times<T>(Even::template sum<0, T>(in, in_stride));
        const Vector<T> odd = Odd::template sum<1, T>(in, in_stride);
        out[row * out_stride] = even + Odd::template factor_times<T>(odd);
        out[(row + 1) * out_stride] = even - Odd::template factor_times<T>(odd);
        evaluate<matrix, size, row + 2, T>(in, in_stride, out, out_stride);
    }
}

// The columns of A^T without the second one of each pair.
template <int outputs, int taps>
struct HalvedOutput {
    static constexpr int pairs = (outputs + taps - 3) / 2;

    static constexpr RationalMatrix<outputs, pairs + 2> halved() {
        RationalMatrix<outputs, pairs + 2> result{};
        for (int row = 0; row < outputs; ++row)
            for (int column = 0; column < pairs + 2; ++column)
                result.at[row][column] = CookToom<outputs, taps>::output.at[row][column ? 2 * column - 1 : 0];
        return result;
    }
    static constexpr RationalMatrix<outputs, pairs + 2> matrix = halved();

    // Even powers of a pair's points meet the sum of its two products, odd ones the difference.
    template <int row = 0, typename T>
    static ENGINE_INLINE void rows(const Vector<T>* even, const Vector<T>* odd, Vector<T>* out, int out_stride) {
        if constexpr (row < outputs) {
            out[row * out_stride] = whole_row<matrix, row, T>(row % 2 ? odd : even, 1);
            rows<row + 1, T>(even, odd, out, out_stride);
        }
    }
};

// B^T: outputs + taps - 1 inputs to as many values.
template <int outputs, int taps, typename T>
ENGINE_INLINE void transform_input(const Vector<T>* in, int in_stride, Vector<T>* out, int out_stride) {
    using Form = CookToom<outputs, taps>;
    if constexpr (Form::size == 1)
        out[0] = in[0];
    else
        evaluate<Form::input, Form::size, 0, T>(in, in_stride, out, out_stride);
}

// G: the taps of a filter to outputs + taps - 1 values.
template <int outputs, int taps, typename T>
ENGINE_INLINE void transform_filter(const Vector<T>* in, int in_stride, Vector<T>* out, int out_stride) {
    using Form = CookToom<outputs, taps>;
    if constexpr (Form::size == 1)
        out[0] = in[0];
    else
        evaluate<Form::filter, Form::size, 0, T>(in, in_stride, out, out_stride);
}

// A^T: outputs + taps - 1 products to the outputs.
template <int outputs, int taps, typename T>
ENGINE_INLINE void transform_output(const Vector<T>* in, int in_stride, Vector<T>* out, int out_stride) {
    if constexpr (outputs + taps == 2) {
        out[0] = in[0];
    } else {
        constexpr int pairs = HalvedOutput<outputs, taps>::pairs, last = 2 * pairs + 1;
        Vector<T> even[pairs + 2], odd[pairs + 2];
        even[0] = odd[0] = in[0];
#pragma GCC unroll 4
        for (int pair = 0; pair < pairs; ++pair) {
            const Vector<T> plus = in[(2 * pair + 1) * in_stride], minus = in[(2 * pair + 2) * in_stride];
            even[pair + 1] = plus + minus;
            odd[pair + 1] = plus - minus;
        }
        even[pairs + 1] = odd[pairs + 1] = in[last * in_stride];
        HalvedOutput<outputs, taps>::template rows<0, T>(even, odd, out, out_stride);
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
