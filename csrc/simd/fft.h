// Fast Fourier transforms of complex vectors: every lane is a transform of its own, so nothing is ever shuffled.
//
// Cooley and Tukey, "An algorithm for the machine calculation of complex Fourier series", 1965. A length is split once
// into two factors of at most 8, small enough for the registers: 16 = 4 x 4, 24 = 6 x 4, 32 = 8 x 4, 48 = 8 x 6,
// 64 = 8 x 8. So the data pass through the registers twice, whatever the length.
#pragma once

#include "vector.h"

namespace engine::ENGINE_ISA {
namespace {

template <typename T>
struct Complex {
    Vector<T> re, im;
};

template <typename T>
ENGINE_INLINE Complex<T> operator+(Complex<T> a, Complex<T> b) {
    return {a.re + b.re, a.im + b.im};
}
template <typename T>
ENGINE_INLINE Complex<T> operator-(Complex<T> a, Complex<T> b) {
    return {a.re - b.re, a.im - b.im};
}
template <typename T>
ENGINE_INLINE Complex<T> times_minus_i(Complex<T> z) {
    return {z.im, -z.re};
}
template <typename T>
ENGINE_INLINE Complex<T> scaled(Complex<T> z, double by) {
    const Vector<T> factor = broadcast(static_cast<T>(by));
    return {z.re * factor, z.im * factor};
}
// Real and imaginary part exchanged: a transform between two exchanges is the inverse transform, times its length.
template <typename T>
ENGINE_INLINE Complex<T> exchanged(Complex<T> z) {
    return {z.im, z.re};
}

// Transforms in place, in natural order: Z[k] = sum of z[n] exp(-2 pi i n k / length).
template <typename T>
ENGINE_INLINE void transform3(Complex<T>& z0, Complex<T>& z1, Complex<T>& z2) {
    constexpr double kSine60 = 0.86602540378443864676;
    const Complex<T> sum = z1 + z2, turned = scaled(times_minus_i(z1 - z2), kSine60), middle = z0 - scaled(sum, 0.5);
    z0 = z0 + sum;
    z1 = middle + turned;
    z2 = middle - turned;
}

template <typename T>
ENGINE_INLINE void transform4(Complex<T>& z0, Complex<T>& z1, Complex<T>& z2, Complex<T>& z3) {
    const Complex<T> a = z0 + z2, b = z0 - z2, c = z1 + z3, d = times_minus_i(z1 - z3);
    z0 = a + c;
    z1 = b + d;
    z2 = a - c;
    z3 = b - d;
}

template <typename T, int length>
ENGINE_INLINE void transform(Complex<T>* z) {
    static_assert(length == 4 || length == 6 || length == 8, "no other factor is used");
    if constexpr (length == 4) {
        transform4(z[0], z[1], z[2], z[3]);
    } else if constexpr (length == 6) {
        // Good and Thomas: 2 and 3 have no common factor, so the right order spares the twiddle factors.
        Complex<T> a[3] = {z[0], z[2], z[4]}, b[3] = {z[3], z[5], z[1]};
        transform3(a[0], a[1], a[2]);
        transform3(b[0], b[1], b[2]);
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) {
            z[4 * k % 6] = a[k] + b[k];
            z[(3 + 4 * k) % 6] = a[k] - b[k];
        }
    } else {
        constexpr double kSine45 = 0.70710678118654752440;
        Complex<T> a[4] = {z[0], z[2], z[4], z[6]}, b[4] = {z[1], z[3], z[5], z[7]};
        transform4(a[0], a[1], a[2], a[3]);
        transform4(b[0], b[1], b[2], b[3]);
        b[1] = scaled(b[1] + times_minus_i(b[1]), kSine45);
        b[2] = times_minus_i(b[2]);
        b[3] = scaled(times_minus_i(b[3]) - b[3], kSine45);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            z[k] = a[k] + b[k];
            z[k + 4] = a[k] - b[k];
        }
    }
}

// sin(2 pi k / n) for an even n, by its series within a quarter of a turn.
constexpr double sine_of_turn(int k, int n) {
    k %= n;
    if (2 * k > n) return -sine_of_turn(k - n / 2, n);
    if (4 * k > n) return sine_of_turn(n / 2 - k, n);
    const double x = 2 * 3.14159265358979323846 * k / n;
    double term = x, sum = 0;
    for (int i = 1; i < 24; i += 2) {
        sum += term;
        term *= -x * x / ((i + 1) * (i + 2));
    }
    return sum;
}

// exp(-2 pi i q k / length) for q < length / first and k < first.
template <typename T, int length, int first>
struct Twiddles {
    T re[length / first][first] = {}, im[length / first][first] = {};
    constexpr Twiddles() {
        for (int q = 0; q < length / first; ++q)
            for (int k = 0; k < first; ++k) {
                re[q][k] = static_cast<T>(sine_of_turn(q * k + length / 4, length));
                im[q][k] = static_cast<T>(-sine_of_turn(q * k, length));
            }
    }
};
template <typename T, int length, int first>
constexpr Twiddles<T, length, first> kTwiddles{};

// The transform of in(0), ..., in(length - 1). Its values come two at a time, as real transforms need them:
// ends(Z[0], Z[length / 2]), then pair(k, Z[k], Z[length - k]) for every 0 < k < length / 2, in no order.
template <typename T, int length, typename In, typename Ends, typename Pair>
ENGINE_INLINE void transform(In in, Ends ends, Pair pair) {
    constexpr int first = length == 16 ? 4 : length == 24 ? 6 : 8, second = length / first;
    constexpr const Twiddles<T, length, first>& twiddles = kTwiddles<T, length, first>;
    Complex<T> middle[first][second];
    for (int q = 0; q < second; ++q) {
        Complex<T> z[first];
#pragma GCC unroll 8
        for (int p = 0; p < first; ++p) z[p] = in(second * p + q);
        transform<T, first>(z);
        middle[0][q] = z[0];
#pragma GCC unroll 8
        for (int k = 1; k < first; ++k) {
            const T re = twiddles.re[q][k], im = twiddles.im[q][k];
            middle[k][q] = {z[k].re * re - z[k].im * im, z[k].re * im + z[k].im * re};
        }
    }
    // Z[k + first * j] lies in row k, and Z[length - (k + first * j)] in row first - k: rows 0 and first / 2 are their
    // own partners.
    Complex<T>* a = middle[0];
    transform<T, second>(a);
    ends(a[0], a[second / 2]);
#pragma GCC unroll 8
    for (int j = 1; j < second / 2; ++j) pair(first * j, a[j], a[second - j]);
    a = middle[first / 2];
    transform<T, second>(a);
#pragma GCC unroll 8
    for (int j = 0; j < second / 2; ++j) pair(first / 2 + first * j, a[j], a[second - 1 - j]);
    for (int k = 1; k < first / 2; ++k) {
        a = middle[k];
        Complex<T>* b = middle[first - k];
        transform<T, second>(a);
        transform<T, second>(b);
#pragma GCC unroll 8
        for (int j = 0; j < second / 2; ++j) {
            pair(k + first * j, a[j], b[second - 1 - j]);
            pair(first - k + first * j, b[j], a[second - 1 - j]);
        }
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
