// The first half of resampling: rows of bytes blended into one row of floats.
#pragma once

#include "lanes.h"

namespace engine::ENGINE_ISA {
namespace {

// `vectors` vectors from `from` on, each the sum of `taps` rows that lie `stride` bytes apart.
template <int vectors>
ENGINE_INLINE void blend_vectors(const uint8_t* from, int64_t stride, const float* weights, int64_t taps, float* to) {
    Floats sums[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[v] = floats_at(from + v * kPixels) * weights[0];
    for (int64_t tap = 1; tap < taps; ++tap) {
        const uint8_t* row = from + tap * stride;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sums[v] += floats_at(row + v * kPixels) * weights[tap];
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(to + v * kPixels, sums[v]);
}

// `count` numbers; nothing beyond them is read or written.
inline void blend_rows(const uint8_t* from, int64_t stride, const float* weights, int64_t taps, int64_t count,
                       float* to) {
    constexpr int64_t block = 4 * kPixels;
    int64_t x = 0;
    for (; x + block <= count; x += block) blend_vectors<4>(from + x, stride, weights, taps, to + x);
    for (; x + kPixels <= count; x += kPixels) blend_vectors<1>(from + x, stride, weights, taps, to + x);
    if (x < count && count >= kPixels) {
        x = count - kPixels;
        return blend_vectors<1>(from + x, stride, weights, taps, to + x);
    }
    for (; x < count; ++x) {
        float sum = 0;
        for (int64_t tap = 0; tap < taps; ++tap) sum += static_cast<float>(from[tap * stride + x]) * weights[tap];
        to[x] = sum;
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
