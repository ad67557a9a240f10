// What the rounding kernels need of a vector: whole numbers, masks, halves of floats. Each has the same result for every
// instruction set; instructions are named where the compiler finds none by itself.
#pragma once

#include "../../simd/vector.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace engine::ENGINE_ISA {
namespace {

constexpr int kWords = kVectorBytes / 4;  // 32-bit lanes

typedef Vector<float> Floats;
typedef Vector<double> Doubles;
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

template <typename T>
struct BitsOf;
template <>
struct BitsOf<float> {
    typedef uint32_t one;
    typedef Words type;
    typedef Integers integers;
};
template <>
struct BitsOf<double> {
    typedef uint64_t one;
    typedef uint64_t type __attribute__((vector_size(kVectorBytes)));
    typedef int64_t integers __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Bits = typename BitsOf<T>::type;
template <typename T>
using IntegersOf = typename BitsOf<T>::integers;

template <typename V, typename W>
ENGINE_INLINE V as(W values) {
    static_assert(sizeof(V) == sizeof(W), "the same bits");
    return reinterpret_cast<V>(values);
}

// Masks: where something holds. AVX-512 has registers of their own for them, elsewhere they are vectors of 0 and -1. They
// are joined by & and |, and are made by
//   below(a, b)    a < b, false for NaN
//   beyond(a, b)   a > b of bits, as integers with a sign
//   differ(a, b)   a < b or a > b
#if defined(__AVX512F__)

template <typename T>
struct MaskOf {
    typedef __mmask16 type;
};
template <>
struct MaskOf<double> {
    typedef __mmask8 type;
};
template <typename T>
using Mask = typename MaskOf<T>::type;

ENGINE_INLINE __mmask16 below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
ENGINE_INLINE __mmask8 below(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
ENGINE_INLINE __mmask16 differ(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_OQ); }
ENGINE_INLINE __mmask8 differ(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_NEQ_OQ); }
ENGINE_INLINE __mmask16 beyond(Words a, uint32_t b) {
    return _mm512_cmpgt_epi32_mask(as<__m512i>(a), _mm512_set1_epi32(static_cast<int32_t>(b)));
}
ENGINE_INLINE __mmask8 beyond(Bits<double> a, uint64_t b) {
    return _mm512_cmpgt_epi64_mask(as<__m512i>(a), _mm512_set1_epi64(static_cast<int64_t>(b)));
}
ENGINE_INLINE __mmask16 equal(Words a, Words b) { return _mm512_cmpeq_epi32_mask(as<__m512i>(a), as<__m512i>(b)); }

ENGINE_INLINE Floats chosen(__mmask16 mask, Floats yes, Floats no) { return _mm512_mask_blend_ps(mask, no, yes); }
ENGINE_INLINE Doubles chosen(__mmask8 mask, Doubles yes, Doubles no) { return _mm512_mask_blend_pd(mask, no, yes); }
ENGINE_INLINE Words chosen(__mmask16 mask, Words yes, Words no) {
    return as<Words>(_mm512_mask_blend_epi32(mask, as<__m512i>(no), as<__m512i>(yes)));
}
ENGINE_INLINE void tally(Words& counts, __mmask16 mask) {
    const __m512i before = as<__m512i>(counts);
    counts = as<Words>(_mm512_mask_add_epi32(before, mask, before, _mm512_set1_epi32(1)));
}
ENGINE_INLINE void tally(Bits<double>& counts, __mmask8 mask) {
    const __m512i before = as<__m512i>(counts);
    counts = as<Bits<double>>(_mm512_mask_add_epi64(before, mask, before, _mm512_set1_epi64(1)));
}
template <typename M>
ENGINE_INLINE bool any(M mask) {
    return mask != 0;
}
template <typename M>
ENGINE_INLINE bool holds(M mask, int lane) {
    return mask >> lane & 1;
}
template <typename M>
ENGINE_INLINE void clear(M& mask, int lane) {
    mask = static_cast<M>(mask & ~(1u << lane));
}

#else

template <typename T>
using Mask = IntegersOf<T>;

template <typename V>
ENGINE_INLINE auto below(V a, V b) {
    return a < b;
}
template <typename V>
ENGINE_INLINE auto differ(V a, V b) {
    return (a < b) | (a > b);
}
ENGINE_INLINE Integers beyond(Words a, uint32_t b) { return as<Integers>(a) > static_cast<int32_t>(b); }
ENGINE_INLINE IntegersOf<double> beyond(Bits<double> a, uint64_t b) {
    return as<IntegersOf<double>>(a) > static_cast<int64_t>(b);
}
ENGINE_INLINE Integers equal(Words a, Words b) { return a == b; }

template <typename M, typename V>
ENGINE_INLINE V chosen(M mask, V yes, V no) {
    return mask ? yes : no;
}
template <typename V, typename M>
ENGINE_INLINE void tally(V& counts, M mask) {
    counts -= as<V>(mask);
}
template <typename M>
ENGINE_INLINE bool any(M mask) {
#if defined(__AVX2__)
    return _mm256_movemask_ps(as<__m256>(mask)) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps(as<__m128>(mask)) != 0;
#else
    typedef uint64_t Pair __attribute__((vector_size(kVectorBytes)));
    const Pair pair = as<Pair>(mask);
    uint64_t all = 0;
    for (int lane = 0; lane < kVectorBytes / 8; ++lane) all |= pair[lane];
    return all != 0;
#endif
}
template <typename M>
ENGINE_INLINE bool holds(M mask, int lane) {
    return mask[lane] != 0;
}
template <typename M>
ENGINE_INLINE void clear(M& mask, int lane) {
    mask[lane] = 0;
}

#endif

// a, but at least `low` and at most `high`; NaN stays.
template <typename T>
ENGINE_INLINE Vector<T> limited(Vector<T> a, Vector<T> low, Vector<T> high) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_maskz_max_ps(0xffff, low, _mm512_maskz_min_ps(0xffff, high, a));
    else return _mm512_maskz_max_pd(0xff, low, _mm512_maskz_min_pd(0xff, high, a));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_max_ps(low, _mm256_min_ps(high, a));
    else return _mm256_max_pd(low, _mm256_min_pd(high, a));
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4) return _mm_max_ps(low, _mm_min_ps(high, a));
    else return _mm_max_pd(low, _mm_min_pd(high, a));
#else
    a = a > high ? high : a;
    return a < low ? low : a;
#endif
}

// Of numbers that are not negative, up to infinity: the whole number that is nearest (half to even), or the next below.
// NaN gives NaN. Without an instruction: adding 2^23 leaves no bits behind the point, and from there on all numbers are
// whole.
template <typename T>
ENGINE_INLINE Vector<T> rounded_by_adding(Vector<T> values) {
    constexpr T whole = sizeof(T) == 4 ? T(8388608) : T(4503599627370496);
    const Vector<T> rounded = (values + whole) - whole;
    return values < whole ? rounded : values;
}

#if defined(__AVX2__)
constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
#endif

template <typename T>
ENGINE_INLINE Vector<T> nearest(Vector<T> values) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_maskz_roundscale_ps(0xffff, values, kNearest);
    else return _mm512_maskz_roundscale_pd(0xff, values, kNearest);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_round_ps(values, kNearest);
    else return _mm256_round_pd(values, kNearest);
#else
    return rounded_by_adding<T>(values);
#endif
}

template <typename T>
ENGINE_INLINE Vector<T> whole_part(Vector<T> values) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_maskz_roundscale_ps(0xffff, values, kDown);
    else return _mm512_maskz_roundscale_pd(0xff, values, kDown);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_round_ps(values, kDown);
    else return _mm256_round_pd(values, kDown);
#else
    const Vector<T> rounded = rounded_by_adding<T>(values);
    return rounded > values ? rounded - T(1) : rounded;
#endif
}

// The lanes `from` to `to` - 1 of memory that begins at lane 0, the others zero; nothing else is read, or written.
template <typename V, typename T>
ENGINE_INLINE V load_lanes(const T* memory, int from, int to) {
    V values{};
    for (int lane = from; lane < to; ++lane) values[lane] = memory[lane];
    return values;
}
template <typename V, typename T>
ENGINE_INLINE void store_lanes(T* memory, V values, int from, int to) {
    for (int lane = from; lane < to; ++lane) memory[lane] = values[lane];
}

// 16-bit lanes from and to memory, as words. Words are at most 0xffff.
ENGINE_INLINE Words load_halves(const uint16_t* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
#if defined(__AVX512F__)
    return as<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, as<__m256i>(halves)));
#elif defined(__AVX2__)
    return as<Words>(_mm256_cvtepu16_epi32(as<__m128i>(halves)));
#else
    return __builtin_convertvector(halves, Words);
#endif
}

ENGINE_INLINE void store_halves(uint16_t* to, Words words) {
#if defined(__AVX512F__)
    const __m256i packed = _mm512_maskz_cvtepi32_epi16(0xffff, as<__m512i>(words));
#elif defined(__AVX2__)
    const __m256i both = _mm256_packus_epi32(as<__m256i>(words), as<__m256i>(words));
    const __m128i packed = _mm256_castsi256_si128(_mm256_permute4x64_epi64(both, 0x08));
#else
    const Halves packed = __builtin_convertvector(words, Halves);
#endif
    std::memcpy(to, &packed, sizeof packed);
}

// Half number `part` of words as numbers of T, or all of them where T has 32 bits. Words are below 2^31.
template <typename T>
ENGINE_INLINE Vector<T> numbers(Words words, int part) {
    if constexpr (sizeof(T) == 4) {
        return __builtin_convertvector(as<Integers>(words), Floats);
    } else {
        typedef int32_t Half __attribute__((vector_size(kVectorBytes / 2)));
        Half halves[2];
        std::memcpy(halves, &words, sizeof halves);
        return __builtin_convertvector(halves[part], Doubles);
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
