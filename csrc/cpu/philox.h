// Philox4x32-10, a counter-based random generator (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
// as easy as 1, 2, 3", SC 2011): each output is a function of its key and counter alone, nothing is remembered.
#pragma once

#include <cstdint>

namespace engine {

// Fills out[n][4 * blocks] with 32-bit words, each in an int64: row i, block b holds the four words of the
// counter (low word of samples[i], high word of samples[i], b, 0) under key (low word, high word).
// Returns null, or why it did nothing.
const char* philox(uint64_t key, const int64_t* samples, int64_t n, int64_t blocks, int64_t* out) noexcept;

// Fills out[n][draws] with numbers of [0, 1): the upper 24 bits of the first `draws` words of row i, times 2^-24.
// Returns null, or why it did nothing.
const char* uniform(uint64_t key, const int64_t* samples, int64_t n, int64_t draws, float* out) noexcept;

}  // namespace engine
