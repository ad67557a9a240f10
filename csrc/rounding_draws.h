// The random bits of stochastic rounding, for any device: Philox4x32-10 (Salmon et al. 2011) under the call's key.
//
// An element first gets 16 bits, as eight elements share a block of the generator. Element e is in group e / 128, at
// place l = e % 16 of row r = e % 128 / 16; its block is that of the counter (16 * group + l, step), its word r % 4,
// and its bits the lower half of the word in rows 0 to 3 and the upper half in the others. So vectors of 4, 8 or 16
// neighbours find their bits side by side.
//
// The 16 bits decide unless they equal the first 16 of the fraction that they are compared with, once in 65,536 times.
// Then another 64 bits decide: words 0 and 1 of the counter (e, step + 2^63). So the probability of a fraction is exact
// to 2^-80.
#pragma once

#include "rounding.h"

namespace engine {

constexpr int kDrawGroup = 128, kDrawLanes = 16, kDrawRows = 8;  // elements of a group, of a row, rows of a group
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhilox0 = 0xD2511F53, kPhilox1 = 0xCD9E8D57, kPhiloxWeyl0 = 0x9E3779B9, kPhiloxWeyl1 = 0xBB67AE85;
constexpr uint64_t kFurther = uint64_t{1} << 63;  // added to the step of further bits

struct PhiloxBlock {
    uint32_t word[4];
};

ENGINE_BOTH PhiloxBlock philox_block(uint64_t key, uint64_t counter, uint64_t step) {
    uint32_t a = uint32_t(counter), b = uint32_t(counter >> 32), c = uint32_t(step), d = uint32_t(step >> 32);
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round, k0 += kPhiloxWeyl0, k1 += kPhiloxWeyl1) {
        const uint64_t p0 = uint64_t{kPhilox0} * a, p1 = uint64_t{kPhilox1} * c;
        a = uint32_t(p1 >> 32) ^ b ^ k0;
        b = uint32_t(p1);
        c = uint32_t(p0 >> 32) ^ d ^ k1;
        d = uint32_t(p0);
    }
    return {{a, b, c, d}};
}

// The first 16 bits of element number `element`.
ENGINE_BOTH uint32_t draw_of(uint64_t key, uint64_t element, uint64_t step) {
    const uint64_t counter = element / kDrawGroup * kDrawLanes + element % kDrawLanes;
    const uint32_t row = uint32_t(element % kDrawGroup / kDrawLanes);
    const uint32_t word = philox_block(key, counter, step).word[row % 4];
    return row < 4 ? word & 0xffff : word >> 16;
}

// Whether an element is rounded up whose 16 bits left it open; rest: the fraction behind its first 16 bits, in [0, 1).
template <typename T>
ENGINE_BOTH bool settle(uint64_t key, uint64_t element, uint64_t step, T rest) {
    const PhiloxBlock block = philox_block(key, element, step ^ kFurther);
    const uint64_t bits = uint64_t{block.word[0]} << 32 | block.word[1];
    return bits < uint64_t(rest * T(18446744073709551616.0));
}

}  // namespace engine
