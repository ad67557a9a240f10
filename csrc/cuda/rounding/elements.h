// What becomes of one element, and what is counted of it: on a GPU as csrc/cpu/rounding does it, bit for bit.
#pragma once

#include <cstring>
#include <type_traits>

#include "../../rounding_draws.h"

namespace engine {
namespace cuda {

// What a thread has seen.
struct Tally {
    int of[kRoundingCounts];
};

template <typename To, typename From>
__device__ __forceinline__ To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &value, sizeof to);
    return to;
}

constexpr uint32_t kSign = 0x80000000, kInfinity = 0x7f800000;
constexpr uint32_t kLargest = 0x7f7f0000;                              // of bfloat16
constexpr uint32_t kLargestHalf = 0x477fe000, kSmallestHalf = 0x38800000;  // of half precision: 65504, and 2^-14

// A float in bits, rounded to the upper half of them; those of bfloat16.
template <bool stochastic>
__device__ __forceinline__ uint16_t to_bfloat16(uint32_t bits, uint32_t draw) {
    const uint32_t size = bits & ~kSign;
    uint32_t rounded;
    if (size > kInfinity)
        rounded = size | 0x400000;
    else if (!stochastic)
        rounded = size + 0x7fff + (size >> 16 & 1);
    else if (size == kInfinity)
        rounded = size;
    else
        rounded = size + draw >= kInfinity ? kLargest : size + draw;
    return uint16_t((rounded | (bits & kSign)) >> 16);
}

template <bool stochastic>
__device__ __forceinline__ void count_bfloat16(Tally& tally, uint32_t bits) {
    constexpr uint32_t most = stochastic ? kLargest : kLargest + 0x7fff, half = kLargest - 0x800000;
    const uint32_t size = bits & ~kSign, number = size > kInfinity ? 0 : size;
    tally.of[kSaturated] += number > most;
    tally.of[kUpperHalf] += number > half;
    tally.of[kNonfinite] += size >= kInfinity;
}

// The kernels' kinds: each has kStochastic, and round(index, element, draw, tally) for one place in memory.

template <typename T, bool stochastic>
struct Fixed {
    static constexpr bool kStochastic = stochastic;
    static constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52, kBias = sizeof(T) == 4 ? 127 : 1023;
    using Bits = typename std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type;
    const T* in;
    T* out;
    uint64_t key, step;
    T spacing, scale, highest, lowest, half;

    __device__ __forceinline__ Fixed(const RoundingCall& call, uint64_t step_)
        : in(static_cast<const T*>(call.in)), out(static_cast<T*>(call.out)), key(call.key), step(step_) {
        const FixedExponents exponents = fixed_exponents(call.format, kBias);
        spacing = power(exponents.spacing);
        scale = power(-exponents.spacing);
        const T top = power(exponents.top - exponents.spacing);
        highest = top - 1;
        lowest = call.format.symmetric ? 1 - top : -top;
        half = top / 2;
    }

    static __device__ __forceinline__ T power(int64_t exponent) {
        return bits_as<T>(Bits(Bits(exponent + kBias) << kMantissa));
    }

    __device__ __forceinline__ void round(int64_t index, uint64_t element, uint32_t draw, Tally& tally) const {
        constexpr Bits sign = Bits{1} << (8 * sizeof(T) - 1), infinity = Bits(2 * kBias + 1) << kMantissa;
        const Bits bits = bits_as<Bits>(in[index]), size = bits & ~sign;
        tally.of[kNonfinite] += size >= infinity;
        if (size > infinity) {
            out[index] = bits_as<T>(Bits(bits | Bits{1} << (kMantissa - 1)));
            return;
        }
        const T x = bits_as<T>(size) * scale;
        T whole = stochastic ? floor(x) : rint(x);
        if (stochastic) {
            const T ahead = (x - whole) * T(65536) - T(draw);
            if (ahead >= 1 || (ahead > 0 && settle(key, element, step, ahead))) whole += 1;
        }
        const T signed_whole = bits_as<T>(Bits(bits_as<Bits>(whole) | (bits & sign)));
        const T limited = signed_whole > highest ? highest : signed_whole < lowest ? lowest : signed_whole;
        tally.of[kSaturated] += limited != signed_whole;
        tally.of[kUpperHalf] += x > half;
        tally.of[kZeroed] += whole == 0 && size != 0;
        out[index] = limited * spacing;
    }
};

template <bool stochastic>
struct ToBFloat16 {
    static constexpr bool kStochastic = stochastic;
    const float* in;
    uint16_t* out;

    __device__ __forceinline__ ToBFloat16(const RoundingCall& call, uint64_t)
        : in(static_cast<const float*>(call.in)), out(static_cast<uint16_t*>(call.out)) {}

    __device__ __forceinline__ void round(int64_t index, uint64_t, uint32_t draw, Tally& tally) const {
        const uint32_t bits = bits_as<uint32_t>(in[index]);
        const uint16_t upper = to_bfloat16<stochastic>(bits, draw);
        count_bfloat16<stochastic>(tally, bits);
        tally.of[kZeroed] += (upper & 0x7fff) == 0 && (bits & ~kSign) != 0;
        out[index] = upper;
    }
};

struct ToFloat16 {
    static constexpr bool kStochastic = false;
    const float* in;
    float* out;

    __device__ __forceinline__ ToFloat16(const RoundingCall& call, uint64_t)
        : in(static_cast<const float*>(call.in)), out(static_cast<float*>(call.out)) {}

    __device__ __forceinline__ void round(int64_t index, uint64_t, uint32_t, Tally& tally) const {
        const uint32_t bits = bits_as<uint32_t>(in[index]), size = bits & ~kSign;
        uint32_t rounded = size;
        if (size < kSmallestHalf)
            rounded = bits_as<uint32_t>((bits_as<float>(size) + 0.5f) - 0.5f);
        else if (size <= kInfinity)
            rounded = (size + 0xfff + (size >> 13 & 1)) & ~uint32_t{0x1fff};
        if (rounded > kLargestHalf && size <= kInfinity) rounded = kInfinity;
        const uint32_t number = size > kInfinity ? 0 : size;
        tally.of[kSaturated] += number > kLargestHalf + 0xfff;
        tally.of[kUpperHalf] += number > kLargestHalf - 0x800000;
        tally.of[kZeroed] += rounded == 0 && size != 0;
        tally.of[kNonfinite] += size >= kInfinity;
        out[index] = bits_as<float>(rounded | (bits & kSign));
    }
};

template <bool stochastic>
struct AddBFloat16 {
    static constexpr bool kStochastic = stochastic;
    const float* in;
    uint16_t* out;
    uint16_t* rest;

    __device__ __forceinline__ AddBFloat16(const RoundingCall& call, uint64_t)
        : in(static_cast<const float*>(call.in)), out(static_cast<uint16_t*>(call.out)),
          rest(static_cast<uint16_t*>(call.compensation)) {}

    static __device__ __forceinline__ float wide(uint16_t half) { return bits_as<float>(uint32_t{half} << 16); }
    // NaN as one that every device makes.
    static __device__ __forceinline__ uint32_t sum_bits(float sum) {
        return sum != sum ? 0x7fc00000 : bits_as<uint32_t>(sum);
    }

    __device__ __forceinline__ void round(int64_t index, uint64_t, uint32_t draw, Tally& tally) const {
        const uint16_t weight = out[index];
        const float update = in[index], before = wide(weight);
        const float wanted = stochastic ? update : update + wide(rest[index]);
        const uint32_t bits = sum_bits(before + wanted);
        const uint16_t after = to_bfloat16<stochastic>(bits, draw);
        if (!stochastic) rest[index] = to_bfloat16<false>(sum_bits(wanted - (wide(after) - before)), 0);
        count_bfloat16<stochastic>(tally, bits);
        tally.of[kZeroed] += after == weight && (bits_as<uint32_t>(update) & ~kSign) != 0;
        out[index] = after;
    }
};

}  // namespace cuda
}  // namespace engine
