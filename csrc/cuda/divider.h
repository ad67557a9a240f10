// Division of many numbers by one that is only known while the program runs: a multiplication, an addition and a shift,
// where the GPU's own division takes some twenty instructions.
//
// Granlund and Montgomery, "Division by invariant integers using multiplication", PLDI 1994.
#pragma once

#include "device.h"

namespace engine {
namespace cuda {
namespace {

// Divides numbers from 0 to 2^31 - 1.
class Divider {
public:
    Divider() = default;
    __host__ __device__ explicit Divider(int divisor) : divisor_(uint32_t(divisor)), shift_(0) {
        while ((uint32_t{1} << shift_) < divisor_) ++shift_;
        factor_ = uint32_t(((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor_)) / divisor_ + 1);
    }
    __device__ __forceinline__ int quotient(int number) const {
        const uint32_t n = uint32_t(number);
        return int((uint32_t(uint64_t{n} * factor_ >> 32) + n) >> shift_);
    }
    // What remains after `quotient` times the divisor.
    __device__ __forceinline__ int rest(int number, int quotient) const { return number - quotient * int(divisor_); }

private:
    uint32_t divisor_, factor_, shift_;
};

}  // namespace
}  // namespace cuda
}  // namespace engine
