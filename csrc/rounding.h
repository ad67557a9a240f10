// Rounding to the number formats of low-precision training, as every device does it.
//
// Nearest: to the nearest number of the format, of two equally near ones to the even one (IEEE 754's default).
// Stochastic: up or down in magnitude, up with a probability of the distance to the lower neighbour over the distance
// of the two, so that the expected value is the number itself (Gupta et al., "Deep learning with limited numerical
// precision", ICML 2015). Numbers of the format stay what they are. The sign is kept, also that of zero; NaN stays NaN.
//
// The random bits of an element are a function of the key, the step and the element's number alone, see
// rounding_draws.h, so neither threads nor devices nor the layout in memory change a result.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ENGINE_BOTH static __host__ __device__ __forceinline__
#else
#define ENGINE_BOTH static inline __attribute__((always_inline))
#endif

namespace engine {

// Memory is [batches][rows][columns], and the elements of a batch are numbered down the columns: element
// `batch * rows * columns + column * rows + row`, counted from `first` on. NCHW is one batch of one column, and
// channels_last a batch for each image, of pixels x channels.
struct RoundingOrder {
    int64_t batches, rows, columns;
    int64_t first;
};

// Fixed point of `bits` bits with the sign, `fraction` of them behind the point: multiples of 2^-fraction from
// -2^(bits - fraction - 1) on, to one spacing less than 2^(bits - fraction - 1) (from its negative on if symmetric).
// Beyond, numbers saturate. exponent: null, or where the device finds e at the time of the call, and fraction is
// bits - 1 - e: the range is 2^e.
struct FixedFormat {
    int64_t bits, fraction;
    int64_t symmetric;
    const int32_t* exponent;
};

// What of a tensor is counted, each added to an int64_t: how many elements
//   seen        there were
//   saturated   were beyond the largest number after rounding: limited to it, or infinite where the format rounds so
//   upper_half  were larger in magnitude than half the range
//   zeroed      were not zero and became zero; of weights that are added to: updates that changed nothing
//   nonfinite   were infinite or NaN
enum RoundingCount { kSeen, kSaturated, kUpperHalf, kZeroed, kNonfinite, kRoundingCounts };

struct RoundingCall {
    RoundingOrder order;
    int64_t stochastic;   // 0: nearest
    uint64_t key;
    const int64_t* step;  // read by the device at the time of the call
    FixedFormat format;   // of fixed point
    const void* in;       // what is rounded, or added
    void* out;            // may be `in`
    void* compensation;   // of a sum with compensation
    int64_t* counts;      // [kRoundingCounts], added to; or null
};

// fixed: float or double to fixed point in the same type.
// bfloat16: float to bfloat16. Beyond the largest number nearest gives infinity, stochastic that number.
// float16: float to the numbers of IEEE half precision, kept in float; nearest. Beyond the largest, infinity.
// add_bfloat16: bfloat16 `out` += float `in`, the sum in float.
// add_compensated: the same to the nearest; what that loses is kept in `compensation`, bfloat16, and added to the next
//   update (Kahan, "Further remarks on reducing truncation errors", 1965).
// NaN keeps its upper bits where it is only rounded, and is 0x7fc0 where it is the result of a sum.

// A fixed-point format as numbers of its carrier, with exponents limited to where all of them are normal.
struct FixedExponents {
    int64_t spacing, top;  // numbers are multiples of 2^spacing from -2^top on
};

// largest: the largest exponent of a normal number of the carrier, 127 or 1023.
ENGINE_BOTH FixedExponents fixed_exponents(const FixedFormat& format, int64_t largest) {
    int64_t top = format.exponent ? int64_t{*format.exponent} : format.bits - 1 - format.fraction;
    if (top > largest) top = largest;
    // One over the spacing has to be normal as well.
    if (top < format.bits - largest) top = format.bits - largest;
    if (top > largest - 2 + format.bits) top = largest - 2 + format.bits;
    return {top - format.bits + 1, top};
}

}  // namespace engine
