// A vector's worth of pixels: bytes to floats and back, and the three channels apart or together.
#pragma once

#include "../../simd/transpose.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace engine::ENGINE_ISA {
namespace {

constexpr int kPixels = kLanes<float>;  // of one channel, that are worked on at once

typedef Vector<float> Floats;
typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

template <typename T>
struct SeveralOf;
template <>
struct SeveralOf<float> {
    typedef Floats type;
};
template <>
struct SeveralOf<uint8_t> {
    typedef Bytes type;
};
template <typename T>
using Several = typename SeveralOf<T>::type;
template <typename T>
constexpr int kSeveral = static_cast<int>(sizeof(Several<T>) / sizeof(T));
template <typename T>
using Each = typename NumbersTo<kSeveral<T>>::type;

template <typename V>
ENGINE_INLINE V load_as(const void* from) {
    V values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

template <typename V>
ENGINE_INLINE void store_as(void* to, V values) {
    std::memcpy(to, &values, sizeof values);
}

// The compiler makes single instructions of neither of the three conversions, so they are named where there are some.

// kPixels bytes as floats.
ENGINE_INLINE Floats floats_at(const uint8_t* from) {
#if defined(__AVX512F__)
    const __m512i words = _mm512_maskz_cvtepu8_epi32(0xffff, load_as<__m128i>(from));
    return __builtin_convertvector(reinterpret_cast<Integers>(words), Floats);
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
    typedef uint8_t Quarters __attribute__((vector_size(kVectorBytes / 4)));
    const Halves halves = __builtin_convertvector(load_as<Quarters>(from), Halves);
    return __builtin_convertvector(__builtin_convertvector(halves, Integers), Floats);
#endif
}

// Stores kPixels floats from -0.5 to 255.5 as the nearest bytes: adding 1.5 * 2^23 leaves them in the last bits.
ENGINE_INLINE void store_bytes(uint8_t* to, Floats values) {
    const Integers bits = reinterpret_cast<Integers>(values + 12582912.0f);
#if defined(__AVX512F__)
    store_as(to, _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(bits)));
#elif defined(__AVX2__)
    const __m256i lowest = reinterpret_cast<__m256i>(bits & 0xff);
    const __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(lowest, lowest), lowest);
    const __m256i joined = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(joined));
#else
    typedef uint8_t Quarters __attribute__((vector_size(kVectorBytes / 4)));
    store_as(to, __builtin_convertvector(__builtin_convertvector(bits, Halves), Quarters));
#endif
}

// Stores kPixels floats as bfloat16: rounded to the nearest, to the even one of two equally near.
ENGINE_INLINE void store_bfloat16(uint16_t* to, Floats values) {
    const Words bits = reinterpret_cast<Words>(values);
    const Words upper = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#if defined(__AVX512F__)
    store_as(to, _mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(upper)));
#elif defined(__AVX2__)
    const __m256i words = reinterpret_cast<__m256i>(upper);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    store_as(to, _mm256_castsi256_si128(packed));
#else
    store_as(to, __builtin_convertvector(upper, Halves));
#endif
}

// Stores what is not read soon, past the caches if it is aligned; `all_stored` before another thread may read it.
ENGINE_INLINE void store_past_caches(float* to, Floats values) {
#if defined(__AVX2__)
    if (reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0) {
#if defined(__AVX512F__)
        return _mm512_stream_ps(to, values);
#else
        return _mm256_stream_ps(to, values);
#endif
    }
#endif
    store(to, values);
}

inline void all_stored() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

// One channel of pixels that lie interleaved in three vectors.
template <int channel, typename V, int... lane>
ENGINE_INLINE V channel_of(V first, V second, V third, Numbers<lane...>) {
    constexpr int one = static_cast<int>(sizeof...(lane)), two = 2 * one;
    const V begun =
        __builtin_shufflevector(first, second, (3 * lane + channel < two ? 3 * lane + channel : 0)...);
    return __builtin_shufflevector(begun, third,
                                   (3 * lane + channel < two ? lane : 3 * lane + channel - two + one)...);
}

// Vector number `part` of three channels interleaved.
template <int part, typename V, int... lane>
ENGINE_INLINE V interleaved_part(V red, V green, V blue, Numbers<lane...>) {
    constexpr int one = static_cast<int>(sizeof...(lane)), from = part * one;
    const V begun = __builtin_shufflevector(red, green, ((from + lane) % 3 == 1 ? one : 0) + (from + lane) / 3 ...);
    return __builtin_shufflevector(begun, blue, ((from + lane) % 3 == 2 ? one + (from + lane) / 3 : lane)...);
}

template <typename V, int... lane>
ENGINE_INLINE V reversed(V values, Numbers<lane...>) {
    return __builtin_shufflevector(values, values, (static_cast<int>(sizeof...(lane)) - 1 - lane)...);
}

// `count` interleaved pixels into three rows.
template <typename T>
ENGINE_INLINE void deinterleave(const T* from, int64_t count, T* red, T* green, T* blue) {
    typedef Several<T> V;
    constexpr int step = kSeveral<T>;
    int64_t x = 0;
    for (; x + step <= count; x += step) {
        const V a = load_as<V>(from + 3 * x), b = load_as<V>(from + 3 * x + step);
        const V c = load_as<V>(from + 3 * x + 2 * step);
        store_as(red + x, channel_of<0>(a, b, c, Each<T>{}));
        store_as(green + x, channel_of<1>(a, b, c, Each<T>{}));
        store_as(blue + x, channel_of<2>(a, b, c, Each<T>{}));
    }
    for (; x < count; ++x) {
        red[x] = from[3 * x];
        green[x] = from[3 * x + 1];
        blue[x] = from[3 * x + 2];
    }
}

ENGINE_INLINE void interleave(const uint8_t* red, const uint8_t* green, const uint8_t* blue, int64_t count,
                              uint8_t* to) {
    typedef Each<uint8_t> Lanes;
    constexpr int step = kSeveral<uint8_t>;
    int64_t x = 0;
    for (; x + step <= count; x += step) {
        const Bytes r = load_as<Bytes>(red + x), g = load_as<Bytes>(green + x), b = load_as<Bytes>(blue + x);
        store_as(to + 3 * x, interleaved_part<0>(r, g, b, Lanes{}));
        store_as(to + 3 * x + step, interleaved_part<1>(r, g, b, Lanes{}));
        store_as(to + 3 * x + 2 * step, interleaved_part<2>(r, g, b, Lanes{}));
    }
    for (; x < count; ++x) {
        to[3 * x] = red[x];
        to[3 * x + 1] = green[x];
        to[3 * x + 2] = blue[x];
    }
}

// Copies of a few dozen bytes, for which a call of memcpy would cost more than the copy.
ENGINE_INLINE void copy_bytes(const uint8_t* from, int64_t count, uint8_t* to) {
    constexpr int64_t step = kSeveral<uint8_t>;
    if (count < step) {
        for (int64_t x = 0; x < count; ++x) to[x] = from[x];
        return;
    }
    for (int64_t x = 0; x < count - step; x += step) store_as(to + x, load_as<Bytes>(from + x));
    store_as(to + count - step, load_as<Bytes>(from + count - step));
}

ENGINE_INLINE void copy_reversed(const uint8_t* from, int64_t count, uint8_t* to) {
    constexpr int64_t step = kSeveral<uint8_t>;
    if (count < step) {
        for (int64_t x = 0; x < count; ++x) to[count - 1 - x] = from[x];
        return;
    }
    for (int64_t x = 0; x < count - step; x += step)
        store_as(to + count - step - x, reversed(load_as<Bytes>(from + x), Each<uint8_t>{}));
    store_as(to, reversed(load_as<Bytes>(from + count - step), Each<uint8_t>{}));
}

}  // namespace
}  // namespace engine::ENGINE_ISA
