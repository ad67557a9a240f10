// Powers of a vector of sums: s^-beta.
#pragma once

#include "../../simd/vector.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace engine::ENGINE_ISA {
namespace {

// The compiler makes no vector instruction of a square root that may set errno. (With a mask of all lanes, as GCC 12
// warns of the plain function's own undefined lanes.)
#if defined(__AVX512F__)
ENGINE_INLINE Vector<float> square_root(Vector<float> x) {
    return (Vector<float>)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
}
ENGINE_INLINE Vector<double> square_root(Vector<double> x) {
    return (Vector<double>)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
}
#elif defined(__AVX2__)
ENGINE_INLINE Vector<float> square_root(Vector<float> x) { return (Vector<float>)_mm256_sqrt_ps((__m256)x); }
ENGINE_INLINE Vector<double> square_root(Vector<double> x) { return (Vector<double>)_mm256_sqrt_pd((__m256d)x); }
#elif defined(__SSE2__)
ENGINE_INLINE Vector<float> square_root(Vector<float> x) { return (Vector<float>)_mm_sqrt_ps((__m128)x); }
ENGINE_INLINE Vector<double> square_root(Vector<double> x) { return (Vector<double>)_mm_sqrt_pd((__m128d)x); }
#elif defined(__aarch64__)
ENGINE_INLINE Vector<float> square_root(Vector<float> x) { return (Vector<float>)vsqrtq_f32((float32x4_t)x); }
ENGINE_INLINE Vector<double> square_root(Vector<double> x) { return (Vector<double>)vsqrtq_f64((float64x2_t)x); }
#else
template <typename V>
ENGINE_INLINE V square_root(V x) {
    for (unsigned lane = 0; lane < sizeof x / sizeof x[0]; ++lane) x[lane] = __builtin_sqrt(x[lane]);
    return x;
}
#endif

// A class of powers is made from beta, and has
//   quotient(x, s)   x / s^beta
//   both(s, p, r)    p = s^-beta, r = 1 / s; both are 0 for a sum beyond all numbers, as x / s^beta then is

// beta = 0.75, that of nearly all networks, takes no more than two square roots.
template <typename T>
class ThreeQuarters {
public:
    explicit ThreeQuarters(double) {}

    ENGINE_INLINE Vector<T> quotient(Vector<T> x, Vector<T> s) const {
        const Vector<T> root = square_root(s);
        return x / (root * square_root(root));
    }
    ENGINE_INLINE void both(Vector<T> s, Vector<T>& p, Vector<T>& r) const {
        const Vector<T> quarter = T(1) / square_root(square_root(s)), half = quarter * quarter;
        p = half * quarter;
        r = half * half;
    }
};

template <typename T>
class AnyPower {
public:
    explicit AnyPower(double beta) : exponent_(static_cast<T>(-beta)) {}

    ENGINE_INLINE Vector<T> quotient(Vector<T> x, Vector<T> s) const { return x * power(s); }
    ENGINE_INLINE void both(Vector<T> s, Vector<T>& p, Vector<T>& r) const {
        p = power(s);
        r = T(1) / s;
    }

private:
    ENGINE_INLINE Vector<T> power(Vector<T> s) const {
        for (int lane = 0; lane < kLanes<T>; ++lane) {
            if constexpr (sizeof(T) == 4)
                s[lane] = __builtin_powf(s[lane], exponent_);
            else
                s[lane] = __builtin_pow(s[lane], exponent_);
        }
        return s;
    }

    T exponent_;
};

}  // namespace
}  // namespace engine::ENGINE_ISA
