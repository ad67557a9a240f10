// A call of a rounding kernel from the numbers that Python passes: the same for the CPU and for GPUs.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>

#include "rounding.h"

namespace engine {

// Numbers of the kernels, in the order of csrc/cpu/rounding.h.
enum RoundingKind { kFixedFloat, kFixedDouble, kBFloat16, kFloat16, kAddBFloat16, kAddCompensated, kRoundingKinds };

inline int rounding_kind(int kind) {
    if (kind < 0 || kind >= kRoundingKinds) throw std::invalid_argument("a kind of rounding is 0 to 5");
    return kind;
}

// sizes: the order's batches, rows, columns and first, whether it is stochastic, the format's bits, fraction and
// whether it is symmetric. arrays: addresses of step, exponent, in, out, compensation and counts; 0: there is none.
inline RoundingCall rounding_call(const std::array<int64_t, 8>& sizes, uint64_t key,
                                  const std::array<std::uintptr_t, 6>& arrays) {
    for (int number = 0; number < 4; ++number)
        if (sizes[static_cast<std::size_t>(number)] < 0) throw std::invalid_argument("a size is negative");
    RoundingCall call{};
    call.order = {sizes[0], sizes[1], sizes[2], sizes[3]};
    call.stochastic = sizes[4];
    call.key = key;
    call.step = reinterpret_cast<const int64_t*>(arrays[0]);
    call.format = {sizes[5], sizes[6], sizes[7], reinterpret_cast<const int32_t*>(arrays[1])};
    call.in = reinterpret_cast<const void*>(arrays[2]);
    call.out = reinterpret_cast<void*>(arrays[3]);
    call.compensation = reinterpret_cast<void*>(arrays[4]);
    call.counts = reinterpret_cast<int64_t*>(arrays[5]);
    return call;
}

}  // namespace engine
