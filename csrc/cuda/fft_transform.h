// Fast Fourier transforms of 16 and 32 complex numbers in the registers of one thread.
//
// Cooley and Tukey, "An algorithm for the machine calculation of complex Fourier series", 1965. A length is split once,
// 16 = 4 x 4 and 32 = 8 x 4. All loops are unrolled, so that every number has a register and every factor is a constant
// of the code: nothing is shuffled between threads, and no table is read.
#pragma once

#include "device.h"

namespace engine {
namespace cuda {
namespace {

template <typename T>
struct Complex {
    T re, im;
};

template <typename T>
__device__ __forceinline__ Complex<T> operator+(Complex<T> a, Complex<T> b) {
    return {a.re + b.re, a.im + b.im};
}
template <typename T>
__device__ __forceinline__ Complex<T> operator-(Complex<T> a, Complex<T> b) {
    return {a.re - b.re, a.im - b.im};
}
template <typename T>
__device__ __forceinline__ Complex<T> operator*(Complex<T> a, Complex<T> b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <typename T>
__device__ __forceinline__ Complex<T> times_minus_i(Complex<T> z) {
    return {z.im, -z.re};
}
// Real and imaginary part exchanged: a transform between two exchanges is the inverse transform, times its length.
template <typename T>
__device__ __forceinline__ Complex<T> exchanged(Complex<T> z) {
    return {z.im, z.re};
}

// cos(2 pi k / 32), for 0 <= k < 40.
template <typename T>
__device__ __forceinline__ T cosine(int k) {
    k %= 32;
    if (k > 16) k = 32 - k;
    const bool negative = k > 8;
    T value = 1;
    switch (negative ? 16 - k : k) {
        case 1: value = T(0.98078528040323044913); break;
        case 2: value = T(0.92387953251128675613); break;
        case 3: value = T(0.83146961230254523708); break;
        case 4: value = T(0.70710678118654752440); break;
        case 5: value = T(0.55557023301960222474); break;
        case 6: value = T(0.38268343236508977173); break;
        case 7: value = T(0.19509032201612826785); break;
        case 8: value = 0; break;
    }
    return negative ? -value : value;
}

// exp(-2 pi i k / 32), for 0 <= k < 32.
template <typename T>
__device__ __forceinline__ Complex<T> root(int k) {
    return {cosine<T>(k), cosine<T>(k + 8)};
}

// Transforms in place, in natural order: Z[k] = sum of z[n] exp(-2 pi i n k / length).
template <typename T>
__device__ __forceinline__ void transform_few(Complex<T> (&z)[4]) {
    const Complex<T> a = z[0] + z[2], b = z[0] - z[2], c = z[1] + z[3], d = times_minus_i(z[1] - z[3]);
    z[0] = a + c;
    z[1] = b + d;
    z[2] = a - c;
    z[3] = b - d;
}

template <typename T>
__device__ __forceinline__ void transform_few(Complex<T> (&z)[8]) {
    const T sine45 = T(0.70710678118654752440);
    Complex<T> a[4] = {z[0], z[2], z[4], z[6]}, b[4] = {z[1], z[3], z[5], z[7]};
    transform_few(a);
    transform_few(b);
    const Complex<T> one = b[1] + times_minus_i(b[1]), three = times_minus_i(b[3]) - b[3];
    b[1] = {one.re * sine45, one.im * sine45};
    b[2] = times_minus_i(b[2]);
    b[3] = {three.re * sine45, three.im * sine45};
    ENGINE_UNROLL
    for (int k = 0; k < 4; ++k) {
        z[k] = a[k] + b[k];
        z[k + 4] = a[k] - b[k];
    }
}

template <typename T, int length>
__device__ __forceinline__ void transform(Complex<T> (&z)[length]) {
    static_assert(length == 16 || length == 32, "tiles have no other size");
    constexpr int first = length / 4, second = 4;
    ENGINE_UNROLL
    for (int q = 0; q < second; ++q) {
        Complex<T> part[first];
        ENGINE_UNROLL
        for (int p = 0; p < first; ++p) part[p] = z[second * p + q];
        transform_few(part);
        z[q] = part[0];
        ENGINE_UNROLL
        for (int k = 1; k < first; ++k) z[second * k + q] = q ? part[k] * root<T>(q * k * (32 / length)) : part[k];
    }
    Complex<T> result[length];
    ENGINE_UNROLL
    for (int k = 0; k < first; ++k) {
        Complex<T> part[second];
        ENGINE_UNROLL
        for (int q = 0; q < second; ++q) part[q] = z[second * k + q];
        transform_few(part);
        ENGINE_UNROLL
        for (int j = 0; j < second; ++j) result[k + first * j] = part[j];
    }
    ENGINE_UNROLL
    for (int k = 0; k < length; ++k) z[k] = result[k];
}

// Two real transforms are done as one: of the sequences a and b, that of a + ib. From its values at k and -k, those of
// a and b at k, twice too large:
template <typename T>
__device__ __forceinline__ Complex<T> first_of_two(Complex<T> z, Complex<T> partner) {
    return {z.re + partner.re, z.im - partner.im};
}
template <typename T>
__device__ __forceinline__ Complex<T> second_of_two(Complex<T> z, Complex<T> partner) {
    return {z.im + partner.im, partner.re - z.re};
}
// And back: the transform of a + ib at k, and at -k.
template <typename T>
__device__ __forceinline__ Complex<T> joined(Complex<T> a, Complex<T> b) {
    return {a.re - b.im, a.im + b.re};
}
template <typename T>
__device__ __forceinline__ Complex<T> joined_partner(Complex<T> a, Complex<T> b) {
    return {a.re + b.im, b.re - a.im};
}

}  // namespace
}  // namespace cuda
}  // namespace engine
