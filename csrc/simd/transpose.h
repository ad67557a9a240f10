// Transposition of a square of vectors in registers.
#pragma once

#include "vector.h"

namespace engine::ENGINE_ISA {
namespace {

// The numbers 0, 1, ... count - 1 as a pack, which is what a shuffle takes its lanes as.
template <int... numbers>
struct Numbers {};
template <int count, int... numbers>
struct NumbersTo : NumbersTo<count - 1, count - 1, numbers...> {};
template <int... numbers>
struct NumbersTo<0, numbers...> {
    typedef Numbers<numbers...> type;
};

// One step: in two vectors that lie `distance` apart, the off-diagonal blocks of that size trade places.
template <int distance, typename T, int... lane>
ENGINE_INLINE void exchange(Vector<T>& upper, Vector<T>& lower, Numbers<lane...>) {
    constexpr int lanes = kLanes<T>;
    const Vector<T> before = upper;
    upper = __builtin_shufflevector(before, lower, ((lane & distance) ? lanes + lane - distance : lane)...);
    lower = __builtin_shufflevector(before, lower, ((lane & distance) ? lanes + lane : lane + distance)...);
}

// square[i][j] becomes square[j][i], for kLanes<T> vectors: by halves, quarters, and so on down to single elements.
template <typename T, int distance = kLanes<T> / 2>
ENGINE_INLINE void transpose(Vector<T>* square) {
    constexpr int lanes = kLanes<T>;
#pragma GCC unroll 16
    for (int row = 0; row < lanes; ++row)
        if (!(row & distance))
            exchange<distance, T>(square[row], square[row + distance], typename NumbersTo<lanes>::type{});
    if constexpr (distance > 1) transpose<T, distance / 2>(square);
}

}  // namespace
}  // namespace engine::ENGINE_ISA
