// The random bits of csrc/rounding_draws.h, a vector of neighbours at a time.
#pragma once

#include "../../rounding_draws.h"
#include "lanes.h"

namespace engine::ENGINE_ISA {
namespace {

// Numbers of 32 bits in lanes of 64, whose upper halves hold anything: what the multiplication takes, and leaves.
typedef uint64_t Wide __attribute__((vector_size(kVectorBytes)));
constexpr int kWide = kVectorBytes / 8;

ENGINE_INLINE Wide product(Wide a, uint32_t b) {
    const Wide factor = uint64_t{b} - Wide{};
#if defined(__AVX512F__)
    return as<Wide>(_mm512_maskz_mul_epu32(0xff, as<__m512i>(a), as<__m512i>(factor)));
#elif defined(__AVX2__)
    return as<Wide>(_mm256_mul_epu32(as<__m256i>(a), as<__m256i>(factor)));
#elif defined(__SSE2__)
    return as<Wide>(_mm_mul_epu32(as<__m128i>(a), as<__m128i>(factor)));
#else
    return (a & 0xffffffff) * factor;
#endif
}

// The keys of all rounds, each in a word of 64 bits: a load broadcasts it.
struct RoundKeys {
    uint64_t first[kPhiloxRounds], second[kPhiloxRounds];

    explicit RoundKeys(uint64_t key) {
        for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
            first[round] = static_cast<uint32_t>(key) + round * kPhiloxWeyl0;
            second[round] = static_cast<uint32_t>(key >> 32) + round * kPhiloxWeyl1;
            first[round] &= 0xffffffff;
            second[round] &= 0xffffffff;
        }
    }
};

struct WideBlocks {
    Wide a, b, c, d;

    ENGINE_INLINE void round(uint64_t first, uint64_t second) {
        const Wide p0 = product(a, kPhilox0), p1 = product(c, kPhilox1);
#if defined(__AVX512F__)
        a = as<Wide>(_mm512_ternarylogic_epi64(as<__m512i>(p1 >> 32), as<__m512i>(b),
                                               _mm512_set1_epi64(static_cast<int64_t>(first)), 0x96));
        c = as<Wide>(_mm512_ternarylogic_epi64(as<__m512i>(p0 >> 32), as<__m512i>(d),
                                               _mm512_set1_epi64(static_cast<int64_t>(second)), 0x96));
#else
        a = (p1 >> 32) ^ b ^ first;
        c = (p0 >> 32) ^ d ^ second;
#endif
        b = p1;
        d = p0;
    }
};

// Words of neighbouring counters side by side, from those of the even ones and those of the odd ones.
ENGINE_INLINE Words woven(Wide even, Wide odd) {
#if defined(__AVX512F__)
    return as<Words>(_mm512_mask_blend_epi32(0xaaaa, as<__m512i>(even), as<__m512i>(odd << 32)));
#elif defined(__AVX2__)
    return as<Words>(_mm256_blend_epi32(as<__m256i>(even), as<__m256i>(odd << 32), 0xaa));
#else
    return as<Words>((even & 0xffffffff) | (odd << 32));
#endif
}

// The random bits of kWords neighbouring places of a group, all of its rows.
class Draws {
public:
    // first: the place of the first, a multiple of kWords.
    ENGINE_INLINE Draws(const RoundKeys& keys, uint64_t group, int first, uint64_t step) {
        const uint64_t counter = group * kDrawLanes + static_cast<uint64_t>(first);
        Wide places{};
        for (int lane = 0; lane < kWide; ++lane) places[lane] = 2 * static_cast<uint64_t>(lane);
        WideBlocks even, odd;
        even.a = places + counter;
        odd.a = even.a + 1;  // without a carry: a group's counters differ in their last four bits
        even.b = odd.b = (counter >> 32) - Wide{};
        even.c = odd.c = step - Wide{};
        even.d = odd.d = (step >> 32) - Wide{};
#pragma GCC unroll 10
        for (int round = 0; round < kPhiloxRounds; ++round) {
            even.round(keys.first[round], keys.second[round]);
            odd.round(keys.first[round], keys.second[round]);
        }
        words_[0] = woven(even.a, odd.a);
        words_[1] = woven(even.b, odd.b);
        words_[2] = woven(even.c, odd.c);
        words_[3] = woven(even.d, odd.d);
    }

    // 16 bits each, as words.
    ENGINE_INLINE Words row(int number) const {
        return number < 4 ? words_[number] & 0xffff : words_[number - 4] >> 16;
    }

private:
    Words words_[4];
};

// Writes the bits of elements from `element` on, `count` or up to two groups more of them, and returns where that of
// `element` is.
ENGINE_INLINE const uint16_t* draw(const RoundKeys& keys, uint64_t element, int64_t count, uint64_t step,
                                   uint16_t* to) {
    const uint64_t last = (element + static_cast<uint64_t>(count) - 1) / kDrawGroup;
    uint16_t* place = to;
    for (uint64_t group = element / kDrawGroup; group <= last; ++group, place += kDrawGroup)
        for (int first = 0; first < kDrawLanes; first += kWords) {
            const Draws draws(keys, group, first, step);
#pragma GCC unroll 8
            for (int row = 0; row < kDrawRows; ++row) store_halves(place + row * kDrawLanes + first, draws.row(row));
        }
    return to + element % kDrawGroup;
}

}  // namespace
}  // namespace engine::ENGINE_ISA
