// The second half of resampling: a row of floats filtered into a shorter or a longer row of bytes.
//
// Neighbouring places whose pixels lie within two vectors are worked on together: for each tap, one shuffle brings
// every place its pixel. Where an image becomes so much smaller that a place has more taps than a vector lanes, places
// are worked on one after the other instead, and the lanes are taps.
#pragma once

#include "lanes.h"
#include "memory.h"
#include "taps.h"

namespace engine::ENGINE_ISA {
namespace {

// Places whose pixels lie in the 2 * kPixels columns from `base` on.
struct Group {
    int32_t start, base;
    int32_t offsets[kPixels];
};

// Lane i is number offsets[i] of the 2 * kPixels from `from` on.
template <int... lane>
ENGINE_INLINE Floats picked(const float* from, Integers offsets, Numbers<lane...>) {
#if defined(__AVX512F__)
    return _mm512_permutex2var_ps(load(from), reinterpret_cast<__m512i>(offsets), load(from + kPixels));
#elif defined(__AVX2__)
    const __m256i lanes = reinterpret_cast<__m256i>(offsets);
    const __m256 first = _mm256_permutevar8x32_ps(load(from), lanes);
    const __m256 second = _mm256_permutevar8x32_ps(load(from + kPixels), lanes);
    return _mm256_blendv_ps(first, second, _mm256_castsi256_ps(_mm256_slli_epi32(lanes, 28)));  // by offsets' bit of 8
#else  // instructions that shuffle by a variable are missing, or slower than loads
    return Floats{from[offsets[lane]]...};
#endif
}

class Horizontal {
public:
    int64_t begin = 0, columns = 0;  // of the source: which are read

    Horizontal(Memory& memory, int64_t width, int64_t most_columns)
        : firsts_(memory.array<int32_t>(width)),
          counts_(memory.array<int32_t>(width)),
          groups_(memory.array<Group>(width)),
          weights_(memory.array<float>(width * larger(kPixels * kPixels, padded(most_columns)))) {}

    // Floats of a row from column `begin` on; those beyond the columns have to be finite.
    static int64_t padded(int64_t columns) { return round_up(columns, kPixels) + 3 * kPixels; }

    void prepare(const Axis& axis, const Places& places) {
        taps_ = count_ = columns = 0;
        int64_t stop = 0;
        for (int64_t place = places.low; place < places.high; ++place) {
            const Taps taps(axis, places.before_mirroring(place));
            firsts_[place] = static_cast<int32_t>(taps.first);
            counts_[place] = static_cast<int32_t>(taps.count);
            taps_ = larger(taps_, taps.count);
            begin = place == places.low ? taps.first : smaller(begin, taps.first);
            stop = larger(stop, taps.first + taps.count);
        }
        if (places.low >= places.high) return;
        columns = stop - begin;
        low_ = places.low;
        high_ = places.high;
        if (taps_ > kPixels)
            spread(axis, places);
        else
            gather(axis, places);
    }

    // Fills the shown places of `channels` rows. Row c of the source begins `stride` floats after row c - 1.
    template <int channels>
    void filter(const float* from, int64_t stride, uint8_t* const* to) const {
        if (taps_ > kPixels) return filter_singly<channels>(from, stride, to);
        for (int64_t number = 0; number < count_; ++number) {
            const Group& group = groups_[number];
            const float* weights = weights_ + number * taps_ * kPixels;
            const float* source = from + group.base;
            Integers offsets = load_as<Integers>(group.offsets);
            Floats sums[channels] = {};
            for (int64_t tap = 0; tap < taps_; ++tap, weights += kPixels, offsets += 1) {
                const Floats share = load(weights);
#pragma GCC unroll 3
                for (int c = 0; c < channels; ++c)
                    sums[c] += share * picked(source + c * stride, offsets, Each<float>{});
            }
#pragma GCC unroll 3
            for (int c = 0; c < channels; ++c) put(sums[c], group.start, to[c]);
        }
    }

private:
    int32_t *firsts_, *counts_;
    Group* groups_;
    float* weights_;
    int64_t taps_ = 0, count_ = 0, low_ = 0, high_ = 0;

    // A group's unused lanes spill over places that the next group fills; behind the last there may be a border.
    ENGINE_INLINE void put(Floats values, int64_t start, uint8_t* row) const {
        if (start + kPixels <= high_) return store_bytes(row + start, values);
        uint8_t bytes[kPixels];
        store_bytes(bytes, values);
        std::memcpy(row + start, bytes, static_cast<size_t>(high_ - start));
    }

    void gather(const Axis& axis, const Places& places) {
        for (int64_t place = low_; place < high_;) {
            int64_t base = firsts_[place], stop = base + counts_[place], size = 1;
            for (; size < kPixels && place + size < high_; ++size) {
                const int64_t first = firsts_[place + size], last = first + counts_[place + size];
                if (larger(stop, last) - smaller(base, first) > 2 * kPixels) break;
                base = smaller(base, first);
                stop = larger(stop, last);
            }
            Group& group = groups_[count_];
            group.start = static_cast<int32_t>(place);
            group.base = static_cast<int32_t>(base - begin);
            float* weights = weights_ + count_++ * taps_ * kPixels;
            std::memset(weights, 0, static_cast<size_t>(taps_ * kPixels) * sizeof(float));
            for (int64_t lane = 0; lane < kPixels; ++lane) {
                group.offsets[lane] = 0;
                if (lane >= size) continue;
                group.offsets[lane] = static_cast<int32_t>(firsts_[place + lane] - base);
                const Taps taps(axis, places.before_mirroring(place + lane));
                for (int64_t tap = 0; tap < taps.count; ++tap) weights[tap * kPixels + lane] = taps.weight(tap);
            }
            place += size;
        }
    }

    void spread(const Axis& axis, const Places& places) {
        const int64_t apart = round_up(taps_, kPixels);
        for (int64_t place = low_; place < high_; ++place) {
            const Taps taps(axis, places.before_mirroring(place));
            float* weights = weights_ + (place - low_) * apart;
            std::memset(weights, 0, static_cast<size_t>(apart) * sizeof(float));
            for (int64_t tap = 0; tap < taps.count; ++tap) weights[tap] = taps.weight(tap);
        }
    }

    template <int channels>
    void filter_singly(const float* from, int64_t stride, uint8_t* const* to) const {
        const int64_t apart = round_up(taps_, kPixels);
        for (int64_t place = low_; place < high_; ++place) {
            const float* weights = weights_ + (place - low_) * apart;
            const float* source = from + firsts_[place] - begin;
            Floats sums[channels] = {};
            for (int64_t tap = 0; tap < counts_[place]; tap += kPixels)
                for (int c = 0; c < channels; ++c) sums[c] += load(weights + tap) * load(source + c * stride + tap);
            for (int c = 0; c < channels; ++c) {
                float sum = 0;
                for (int lane = 0; lane < kPixels; ++lane) sum += sums[c][lane];
                to[c][place] = static_cast<uint8_t>(__builtin_rintf(sum));
            }
        }
    }
};

}  // namespace
}  // namespace engine::ENGINE_ISA
