// What the kernels of binary networks need of a vector: 32-bit lanes, one for each filter of a panel, in as many vectors
// as that takes. Each has the same result for every instruction set.
#pragma once

#include "../../binary.h"
#include "../../simd/vector.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace engine::ENGINE_ISA {
namespace {

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes)));
typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));

constexpr int kWords = kVectorBytes / 4;       // lanes
constexpr int kVectors = kPanel / kWords;      // of a panel

ENGINE_INLINE Words load_words(const uint32_t* from) {
    typedef uint32_t Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
    return *reinterpret_cast<const Unaligned*>(from);
}

ENGINE_INLINE void store_integers(int32_t* to, Integers values) {
    typedef int32_t Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
    *reinterpret_cast<Unaligned*>(to) = values;
}

ENGINE_INLINE Words all(uint32_t word) { return word - Words{}; }

template <typename V, typename W>
ENGINE_INLINE V as(W values) {
    static_assert(sizeof(V) == sizeof(W), "the same bits");
    return reinterpret_cast<V>(values);
}

// Half of a carry-save adder (Harley and Seal): `ones` holds the bits of weight 1 of a running count, u and v are added
// to it. Given are u and both = u xor v. Returns the carries, of weight 2.
ENGINE_INLINE Words add_two(Words& ones, Words u, Words both) {
    const Words before = ones;
    ones ^= both;
#if defined(__AVX512F__)
    // Where both are alike the count's bit stays, and either of them is the carry; else the bit that was there is.
    return as<Words>(_mm512_ternarylogic_epi32(as<__m512i>(both), as<__m512i>(before), as<__m512i>(u), 0xca));
#else
    return u ^ (both & (before ^ u));
#endif
}

#if defined(__AVX512VPOPCNTDQ__)

// How many bits were set in all words that were added, by lane.
struct Count {
    Words total{};

    static constexpr int64_t kMost = INT64_MAX;  // words between two calls of carry()

    ENGINE_INLINE void add(Words words) { total += as<Words>(_mm512_popcnt_epi32(as<__m512i>(words))); }
    ENGINE_INLINE void carry() {}
};

#else

// The number of set bits in each byte.
ENGINE_INLINE Bytes count_bytes(Words words) {
#if defined(__AVX512BW__)
    const int64_t below_8 = 0x0302020102010100, others = 0x0403030203020201;  // set bits of 0 to 7, and of 8 to 15
    const __m512i table = _mm512_set4_epi64(others, below_8, others, below_8);
    const __m512i low = _mm512_set1_epi8(15), values = as<__m512i>(words);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(values, 4), low);
    return as<Bytes>(_mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(values, low)),
                                     _mm512_shuffle_epi8(table, high)));
#elif defined(__AVX2__)
    const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i low = _mm256_set1_epi8(15), values = as<__m256i>(words);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(values, 4), low);
    return as<Bytes>(_mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(values, low)),
                                     _mm256_shuffle_epi8(table, high)));
#else
    words -= (words >> 1) & 0x55555555;
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333);
    return as<Bytes>((words + (words >> 4)) & 0x0f0f0f0f);
#endif
}

// As above; counted in bytes, which carry() adds up before they overflow.
struct Count {
    Words total{};
    Bytes bytes{};

    static constexpr int64_t kMost = 31;  // of at most 8 set bits in a byte

    ENGINE_INLINE void add(Words words) { bytes += count_bytes(words); }
    ENGINE_INLINE void carry() {
        const Words pairs = (as<Words>(bytes) & 0x00ff00ff) + ((as<Words>(bytes) >> 8) & 0x00ff00ff);
        total += (pairs & 0xffff) + (pairs >> 16);
        bytes = Bytes{};
    }
};

#endif

// A weight for each byte of a vector, -1 where its bit is set and else 1; of bits 32 * i and on, i the vector's number
// among those of a panel.
ENGINE_INLINE Bytes signs_of(const uint32_t* bits, int number) {
#if defined(__AVX512BW__)
    uint64_t mask;
    std::memcpy(&mask, bits + 2 * number, sizeof mask);
    return as<Bytes>(_mm512_mask_blend_epi8(mask, _mm512_set1_epi8(1), _mm512_set1_epi8(-1)));
#elif defined(__AVX2__)
    const __m256i order = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i place = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits[number])), order);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, place), place);
    return as<Bytes>(_mm256_or_si256(set, _mm256_set1_epi8(1)));
#else
    static_assert(kVectorBytes == 16, "two bytes of bits to a vector");
    typedef uint64_t Pair __attribute__((vector_size(16)));
    typedef int8_t Signed __attribute__((vector_size(16)));
    const uint32_t own = bits[number / 2] >> (number % 2 * 16);
    const Pair spread = Pair{own & 0xff, own >> 8 & 0xff} * 0x0101010101010101;
    const Pair place = Pair{} + 0x8040201008040201;
    return as<Bytes>(as<Signed>(spread & place) == as<Signed>(place)) | 1;
#endif
}

// sums[lane] += the products of four bytes, the same in every lane, with the lane's four signs.
ENGINE_INLINE Integers add_products(Integers sums, uint32_t bytes, Bytes signs) {
#if defined(__AVX512VNNI__)
    return as<Integers>(
        _mm512_dpbusd_epi32(as<__m512i>(sums), _mm512_set1_epi32(static_cast<int>(bytes)), as<__m512i>(signs)));
#elif defined(__AVX512BW__)
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi32(static_cast<int>(bytes)), as<__m512i>(signs));
    return sums + as<Integers>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(static_cast<int>(bytes)), as<__m256i>(signs));
    return sums + as<Integers>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
    // x * 1 = x and x * -1 = (x xor -1) + 1; of the lane's four bytes those are taken that the signs' upper bits name.
    const Bytes minus = signs >> 7, values = as<Bytes>(all(bytes));
    const Words chosen = as<Words>(values & -minus), whole = all(bytes);
    const Words pairs = (whole & 0x00ff00ff) + ((whole >> 8) & 0x00ff00ff);
    const Words less = (chosen & 0x00ff00ff) + ((chosen >> 8) & 0x00ff00ff);
    return sums + as<Integers>((pairs & 0xffff) + (pairs >> 16)) - 2 * as<Integers>((less & 0xffff) + (less >> 16));
#endif
}

// A bit for each lane: whether sums >= thresholds.
ENGINE_INLINE uint32_t at_least(Integers sums, Integers thresholds) {
#if defined(__AVX512F__)
    return _mm512_cmpge_epi32_mask(as<__m512i>(sums), as<__m512i>(thresholds));
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(as<__m256>(sums >= thresholds)));
#elif defined(__SSE2__)
    return static_cast<uint32_t>(_mm_movemask_ps(as<__m128>(sums >= thresholds)));
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < kWords; ++lane) bits |= static_cast<uint32_t>(sums[lane] >= thresholds[lane]) << lane;
    return bits;
#endif
}

}  // namespace
}  // namespace engine::ENGINE_ISA
