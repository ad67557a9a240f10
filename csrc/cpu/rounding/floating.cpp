// Rounding to bfloat16, which is the upper half of a float, and to half precision.
#include "kernels.h"
#include "loop.h"

namespace engine::ENGINE_ISA {
namespace {

constexpr uint32_t kSign = 0x80000000, kInfinity = 0x7f800000;
constexpr uint32_t kLargest = 0x7f7f0000;  // of bfloat16

ENGINE_INLINE Words magnitude(Words bits) { return bits & ~kSign; }

// Bits of floats to those of bfloat16; draws: 16 random bits. Adding them carries into the upper half with the
// probability of the fraction that the lower half is.
template <bool stochastic>
ENGINE_INLINE Words to_bfloat16(Words bits, Words draws) {
    const Words size = magnitude(bits), sign = bits & kSign;
    Words rounded;
    if constexpr (stochastic) {
        // What would pass the largest number stays it.
        const Words summed = size + draws;
        rounded = chosen(beyond(summed, kInfinity - 1), kLargest - Words{}, summed);
        rounded = chosen(beyond(size, kInfinity - 1), size, rounded);
    } else {
        rounded = size + 0x7fff + (size >> 16 & 1);
    }
    rounded = chosen(beyond(size, kInfinity), size | 0x400000, rounded);
    return (rounded | sign) >> 16;
}

// Counts what becomes of floats.
template <bool stochastic>
ENGINE_INLINE void count_bfloat16(Counts<float>& counts, Words bits) {
    // Beyond the largest, and at least half a spacing beyond it, which nearest makes infinite.
    constexpr uint32_t most = stochastic ? kLargest : kLargest + 0x7fff, half = kLargest - 0x800000;
    const Words size = magnitude(bits);
    const Words number = chosen(beyond(size, kInfinity), Words{}, size);
    tally(counts.saturated, beyond(number, most));
    tally(counts.upper_half, beyond(number, half));
    tally(counts.nonfinite, beyond(size, kInfinity - 1));
}

template <bool stochastic, bool counting>
class ToBFloat16 {
public:
    static constexpr bool kStochastic = stochastic;
    Counts<float> counts;

    ToBFloat16(const RoundingCall& call, uint64_t)
        : in_(static_cast<const uint32_t*>(call.in)), out_(static_cast<uint16_t*>(call.out)) {}

    ENGINE_INLINE void apply(int64_t index, int from, int to, Words draws, int64_t, int64_t) {
        if (from == 0 && to == kWords) {
            Words bits;
            std::memcpy(&bits, in_ + index, sizeof bits);
            return store_halves(out_ + index, rounded(bits, draws));
        }
        store_lanes(out_ + index, rounded(load_lanes<Words>(in_ + index, from, to), draws), from, to);
    }

private:
    const uint32_t* in_;
    uint16_t* out_;

    ENGINE_INLINE Words rounded(Words bits, Words draws) {
        const Words upper = to_bfloat16<stochastic>(bits, draws);
        if constexpr (counting) {
            count_bfloat16<stochastic>(counts, bits);
            tally(counts.zeroed, equal(upper & 0x7fff, Words{}) & beyond(magnitude(bits), 0));
        }
        return upper;
    }
};

constexpr uint32_t kLargestHalf = 0x477fe000, kSmallestHalf = 0x38800000;  // 65504; 2^-14, the smallest normal number

template <bool counting>
class ToFloat16 {
public:
    static constexpr bool kStochastic = false;
    Counts<float> counts;

    ToFloat16(const RoundingCall& call, uint64_t)
        : in_(static_cast<const float*>(call.in)), out_(static_cast<float*>(call.out)) {}

    ENGINE_INLINE void apply(int64_t index, int from, int to, Words, int64_t, int64_t) {
        if (from == 0 && to == kWords) return store(out_ + index, rounded(load(in_ + index)));
        store_lanes(out_ + index, rounded(load_lanes<Floats>(in_ + index, from, to)), from, to);
    }

private:
    const float* in_;
    float* out_;

    ENGINE_INLINE Floats rounded(Floats values) {
        const Words bits = as<Words>(values), size = magnitude(bits);
        // Below 2^-14 multiples of 2^-24, which is the last bit of numbers from 0.5 to 1; else 10 bits of the 23 are kept.
        const Words small = as<Words>((as<Floats>(size) + 0.5f) - 0.5f);
        const Words usual = (size + 0xfff + (size >> 13 & 1)) & ~uint32_t{0x1fff};
        Words rounded = chosen(beyond(usual, kLargestHalf), kInfinity - Words{}, usual);
        rounded = chosen(beyond(size, kSmallestHalf - 1), rounded, small);
        rounded = chosen(beyond(size, kInfinity), size, rounded);
        if constexpr (counting) {
            const Words number = chosen(beyond(size, kInfinity), Words{}, size);
            tally(counts.saturated, beyond(number, kLargestHalf + 0xfff));
            tally(counts.upper_half, beyond(number, kLargestHalf - 0x800000));
            tally(counts.zeroed, equal(rounded, Words{}) & beyond(size, 0));
            tally(counts.nonfinite, beyond(size, kInfinity - 1));
        }
        return as<Floats>(rounded | (bits & kSign));
    }
};

// The bits of a sum, NaN as one that every device makes.
ENGINE_INLINE Words sum_bits(Floats sum) {
    return chosen(beyond(magnitude(as<Words>(sum)), kInfinity), 0x7fc00000 - Words{}, as<Words>(sum));
}

template <bool stochastic, bool counting>
class AddBFloat16 {
public:
    static constexpr bool kStochastic = stochastic;
    Counts<float> counts;

    AddBFloat16(const RoundingCall& call, uint64_t)
        : in_(static_cast<const float*>(call.in)), out_(static_cast<uint16_t*>(call.out)),
          rest_(static_cast<uint16_t*>(call.compensation)) {}

    ENGINE_INLINE void apply(int64_t index, int from, int to, Words draws, int64_t, int64_t) {
        const bool whole = from == 0 && to == kWords;
        const Floats update = whole ? load(in_ + index) : load_lanes<Floats>(in_ + index, from, to);
        const Words weight = at(out_ + index, from, to);
        const Floats before = as<Floats>(weight << 16);
        Words after;
        if constexpr (stochastic) {
            after = rounded(before + update, draws);
        } else {
            const Floats wanted = update + as<Floats>(at(rest_ + index, from, to) << 16);
            after = rounded(before + wanted, draws);
            const Floats lost = wanted - (as<Floats>(after << 16) - before);
            put(rest_ + index, to_bfloat16<false>(sum_bits(lost), draws), from, to);
        }
        if constexpr (counting)
            tally(counts.zeroed, equal(after, weight) & beyond(magnitude(as<Words>(update)), 0));
        put(out_ + index, after, from, to);
    }

private:
    const float* in_;
    uint16_t* out_;
    uint16_t* rest_;

    static ENGINE_INLINE Words at(const uint16_t* memory, int from, int to) {
        return from == 0 && to == kWords ? load_halves(memory) : load_lanes<Words>(memory, from, to);
    }
    static ENGINE_INLINE void put(uint16_t* memory, Words words, int from, int to) {
        from == 0 && to == kWords ? store_halves(memory, words) : store_lanes(memory, words, from, to);
    }
    ENGINE_INLINE Words rounded(Floats sum, Words draws) {
        const Words bits = sum_bits(sum), upper = to_bfloat16<stochastic>(bits, draws);
        if constexpr (counting) count_bfloat16<stochastic>(counts, bits);
        return upper;
    }
};

template <template <bool, bool> class Kind, bool stochastic>
void round_counting(const RoundingCall& call, int threads) {
    call.counts ? round_all<Kind<stochastic, true>>(call, threads) : round_all<Kind<stochastic, false>>(call, threads);
}

}  // namespace

void round_bfloat16(const RoundingCall& call, int threads) {
    call.stochastic ? round_counting<ToBFloat16, true>(call, threads) : round_counting<ToBFloat16, false>(call, threads);
}
void round_float16(const RoundingCall& call, int threads) {
    call.counts ? round_all<ToFloat16<true>>(call, threads) : round_all<ToFloat16<false>>(call, threads);
}
void add_bfloat16(const RoundingCall& call, int threads) { round_counting<AddBFloat16, true>(call, threads); }
void add_compensated(const RoundingCall& call, int threads) { round_counting<AddBFloat16, false>(call, threads); }

extern const RoundingKernels rounding = {round_fixed_float, round_fixed_double, round_bfloat16,
                                         round_float16,     add_bfloat16,       add_compensated};

}  // namespace engine::ENGINE_ISA
