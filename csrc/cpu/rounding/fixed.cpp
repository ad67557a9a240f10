// Rounding to fixed point.
//
// A number is scaled so that the spacing is 1, and its magnitude x is split into the whole part, which is exact, and a
// fraction, which is exact as well. `floor(x + random)` would do neither: for large x the sum is rounded, so that numbers
// of the format move and the rest is biased.
#include "../rounding.h"

#include "kernels.h"
#include "loop.h"

namespace engine::ENGINE_ISA {
namespace {

template <typename T, bool stochastic, bool counting>
class Fixed {
public:
    static constexpr bool kStochastic = stochastic;
    Counts<T> counts;

    Fixed(const RoundingCall& call, uint64_t step)
        : in_(static_cast<const T*>(call.in)), out_(static_cast<T*>(call.out)), key_(call.key), step_(step) {
        const FixedExponents exponents = fixed_exponents(call.format, sizeof(T) == 4 ? 127 : 1023);
        spacing_ = power(exponents.spacing);
        scale_ = power(-exponents.spacing);
        const T top = power(exponents.top - exponents.spacing);
        highest_ = top - 1;
        lowest_ = call.format.symmetric ? 1 - top : -top;
        half_ = top / 2;
    }

    ENGINE_INLINE void apply(int64_t index, int from, int to, Words draws, int64_t element, int64_t stride) {
        constexpr int lanes = kLanes<T>;
#pragma GCC unroll 2
        for (int part = 0; part < kWords / lanes; ++part) {
            const int before = part * lanes;
            const T* const in = in_ + index + before;
            T* const out = out_ + index + before;
            const Vector<T> u = numbers<T>(draws, part);
            if (from == 0 && to == kWords) {
                store(out, rounded(load(in), u, element + before * stride, stride));
                continue;
            }
            const int begin = within(from - before), end = within(to - before);
            const Vector<T> values = load_lanes<Vector<T>>(in, begin, end);
            store_lanes(out, rounded(values, u, element + before * stride, stride), begin, end);
        }
    }

private:
    typedef typename BitsOf<T>::one One;
    const T* in_;
    T* out_;
    uint64_t key_, step_;
    T spacing_, scale_, highest_, lowest_, half_;

    static int within(int lane) { return lane < 0 ? 0 : lane > kLanes<T> ? kLanes<T> : lane; }

    // 2^exponent, of a normal number.
    static T power(int64_t exponent) {
        const One bits = static_cast<One>(exponent + (sizeof(T) == 4 ? 127 : 1023)) << (sizeof(T) == 4 ? 23 : 52);
        T value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }

    ENGINE_INLINE Vector<T> rounded(Vector<T> values, Vector<T> u, int64_t element, int64_t stride) {
        constexpr One sign = One{1} << (8 * sizeof(T) - 1);
        const Bits<T> magnitude = as<Bits<T>>(values) & ~sign;
        const Vector<T> x = as<Vector<T>>(magnitude) * scale_;
        Vector<T> whole;
        if constexpr (stochastic) {
            whole = whole_part<T>(x);
            // How far the fraction, in units of 2^-16, is beyond the random number: up if it is, but below 1 its further
            // bits decide.
            const Vector<T> ahead = (x - whole) * T(65536) - u;
            Mask<T> up = below(Vector<T>{}, ahead);
            const Mask<T> open = up & below(ahead, broadcast(T(1)));
            if (__builtin_expect(any(open), 0)) up = settled(up, open, ahead, element, stride);
            whole = chosen(up, whole + T(1), whole);
        } else {
            whole = nearest<T>(x);
        }
        const Vector<T> signed_whole = as<Vector<T>>(as<Bits<T>>(whole) | (as<Bits<T>>(values) & sign));
        const Vector<T> result = limited<T>(signed_whole, broadcast(lowest_), broadcast(highest_));
        if constexpr (counting) {
            constexpr One infinity = sizeof(T) == 4 ? One(0x7f800000) : One(0x7ff0000000000000);
            tally(counts.saturated, differ(result, signed_whole));
            tally(counts.upper_half, below(broadcast(half_), x));
            tally(counts.zeroed, below(whole, broadcast(T(1))) & beyond(magnitude, 0));
            tally(counts.nonfinite, beyond(magnitude, infinity - 1));
        }
        return result * spacing_;
    }

    // Decides where the first 16 bits left it open; rest: the fraction behind them.
    __attribute__((noinline)) Mask<T> settled(Mask<T> up, Mask<T> open, Vector<T> rest, int64_t element,
                                              int64_t stride) const {
        for (int lane = 0; lane < kLanes<T>; ++lane)
            if (holds(open, lane) && !settle(key_, static_cast<uint64_t>(element + lane * stride), step_, T(rest[lane])))
                clear(up, lane);
        return up;
    }
};

template <typename T, bool stochastic>
void round_counting(const RoundingCall& call, int threads) {
    call.counts ? round_all<Fixed<T, stochastic, true>>(call, threads)
                : round_all<Fixed<T, stochastic, false>>(call, threads);
}

}  // namespace

void round_fixed_float(const RoundingCall& call, int threads) {
    call.stochastic ? round_counting<float, true>(call, threads) : round_counting<float, false>(call, threads);
}
void round_fixed_double(const RoundingCall& call, int threads) {
    call.stochastic ? round_counting<double, true>(call, threads) : round_counting<double, false>(call, threads);
}

}  // namespace engine::ENGINE_ISA
