// The matrices of Winograd's minimal filtering, F(outputs, taps), made by Toom and Cook's method in exact fractions
// while the compiler runs, so that none is typed in.
//
// Correlating `size` = outputs + taps - 1 inputs d with a filter g of so many taps takes only `size` multiplications:
//   out = A^T [(G g) * (B^T d)],
// where G evaluates the filter, as a polynomial, at size - 1 points and at infinity, and the transposes of evaluation
// and interpolation do the rest. In two dimensions each matrix is applied to the columns and then to the rows.
// Winograd, "Arithmetic complexity of computations", SIAM 1980; Lavin and Gray, "Fast algorithms for convolutional
// neural networks", CVPR 2016; Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution
// for deep neural networks", TOMS 2020, about the choice of points.
//
// Scaling a row by a power of two changes no bit of a result's mantissa, so rows of B^T are simply those of monic
// polynomials: cheap to compute, and of similar magnitude.
#pragma once

#include <cstdint>

namespace engine {
namespace {

// A fraction in lowest terms. An overflow while the compiler calculates is an error, so there is none unseen.
struct Rational {
    int64_t numerator = 0, denominator = 1;

    constexpr Rational() = default;
    constexpr Rational(int64_t n, int64_t d = 1) : numerator(d < 0 ? -n : n), denominator(d < 0 ? -d : d) {
        int64_t a = numerator < 0 ? -numerator : numerator, b = denominator;
        while (b != 0) {
            const int64_t rest = a % b;
            a = b;
            b = rest;
        }
        numerator /= a;
        denominator /= a;
    }
    constexpr double value() const { return static_cast<double>(numerator) / static_cast<double>(denominator); }
};

constexpr bool operator==(Rational a, Rational b) {
    return a.numerator == b.numerator && a.denominator == b.denominator;
}
constexpr bool operator!=(Rational a, Rational b) { return !(a == b); }
constexpr Rational operator-(Rational a) { return {-a.numerator, a.denominator}; }
constexpr Rational operator+(Rational a, Rational b) {
    return {a.numerator * b.denominator + b.numerator * a.denominator, a.denominator * b.denominator};
}
constexpr Rational operator-(Rational a, Rational b) { return a + -b; }
constexpr Rational operator*(Rational a, Rational b) {
    return {a.numerator * b.numerator, a.denominator * b.denominator};
}
constexpr Rational operator/(Rational a, Rational b) {
    return {a.numerator * b.denominator, a.denominator * b.numerator};
}

template <int height, int width>
struct RationalMatrix {
    Rational at[height][width];
};

// The points are 0, infinity and pairs p, -p, whose rows share their even and their odd part. Listed are the p, which
// only `size` decides: F(4, 3) and F(3, 4) transform their inputs alike.
//
// Chosen by measuring, among fractions whose squares binary numbers hold exactly. Relative L2 error in float of 3x3
// filters, 64 channels, normally distributed: F(2, 3) 2.4e-7; F(4, 3) 7.2e-7, where Lavin's 1, 2 give 1.5e-6;
// F(6, 3) 3.1e-6, the least of 90 triples.
template <int size>
struct CookToomPairs;
template <>
struct CookToomPairs<4> {
    static constexpr Rational points[] = {{1}};
};
template <>
struct CookToomPairs<6> {
    static constexpr Rational points[] = {{5, 8}, {3, 2}};
};
template <>
struct CookToomPairs<8> {
    static constexpr Rational points[] = {{1}, {2}, {1, 2}};
};

template <int size_>
struct CookToomPoints {
    // Row 0 belongs to the point 0, rows 2q + 1 and 2q + 2 to the two points of pair q, the last one to infinity.
    static constexpr Rational point(int row) {
        if (row == 0) return 0;
        const Rational p = CookToomPairs<size_>::points[(row - 1) / 2];
        return row % 2 ? p : -p;
    }

    // Row i of B^T: the coefficients, from the constant one, of the product of (x - point) over all points but i.
    static constexpr RationalMatrix<size_, size_> input_matrix() {
        RationalMatrix<size_, size_> matrix{};
        for (int row = 0; row < size_; ++row) {
            matrix.at[row][0] = 1;
            for (int other = 0; other < size_ - 1; ++other) {
                if (other == row) continue;
                for (int power = size_ - 1; power > 0; --power)
                    matrix.at[row][power] = matrix.at[row][power - 1] - point(other) * matrix.at[row][power];
                matrix.at[row][0] = -point(other) * matrix.at[row][0];
            }
        }
        return matrix;
    }

    // What a product at this point is divided by: the product of its distances from all the others.
    static constexpr Rational divisor(int row) {
        Rational product = 1;
        for (int other = 0; other < size_ - 1; ++other)
            if (other != row && row != size_ - 1) product = product * (point(row) - point(other));
        return product;
    }

    // Row i: the powers of point i, and for infinity the highest power alone.
    template <int powers>
    static constexpr RationalMatrix<size_, powers> evaluation(bool divided) {
        RationalMatrix<size_, powers> matrix{};
        for (int row = 0; row < size_ - 1; ++row) {
            Rational value = divided ? 1 / divisor(row) : 1;
            for (int power = 0; power < powers; ++power, value = value * point(row)) matrix.at[row][power] = value;
        }
        matrix.at[size_ - 1][powers - 1] = 1;
        return matrix;
    }
};

template <int height, int width>
constexpr RationalMatrix<width, height> transposed(const RationalMatrix<height, width>& matrix) {
    RationalMatrix<width, height> result{};
    for (int i = 0; i < height; ++i)
        for (int j = 0; j < width; ++j) result.at[j][i] = matrix.at[i][j];
    return result;
}

template <int outputs_, int taps_>
struct CookToom {
    static constexpr int outputs = outputs_, taps = taps_, size = outputs + taps - 1;
    // The divisions belong to the shorter of filter and output: the weights, which are transformed once while there
    // are many tiles of images, whether they are the filter (forward) or the output (gradient of the weights).
    static constexpr bool filter_divided = taps < outputs;

    static constexpr RationalMatrix<size, size> input = CookToomPoints<size>::input_matrix();  // B^T
    static constexpr RationalMatrix<size, taps> filter =                                       // G
        CookToomPoints<size>::template evaluation<taps>(filter_divided);
    static constexpr RationalMatrix<outputs, size> output =  // A^T
        transposed(CookToomPoints<size>::template evaluation<outputs>(!filter_divided));

    // Whether out[i] is the sum over j of d[i + j] * g[j] for all d and g, which is decided without any rounding.
    static constexpr bool is_correlation() {
        for (int i = 0; i < outputs; ++i)
            for (int j = 0; j < taps; ++j)
                for (int k = 0; k < size; ++k) {
                    Rational sum = 0;
                    for (int e = 0; e < size; ++e) sum = sum + output.at[i][e] * filter.at[e][j] * input.at[e][k];
                    if (sum != Rational(k == i + j)) return false;
                }
        return true;
    }
};

static_assert(CookToom<2, 3>::is_correlation() && CookToom<4, 3>::is_correlation() &&
              CookToom<6, 3>::is_correlation() && CookToom<3, 2>::is_correlation() &&
              CookToom<3, 4>::is_correlation() && CookToom<3, 6>::is_correlation());

}  // namespace
}  // namespace engine
