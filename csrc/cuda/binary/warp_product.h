// What a warp multiplies at a time: 16 rows with 8 filters, 8 words deep, by one instruction of the tensor cores.
//
//   of bits   and, then a count of bits: mma.m16n8k256 with .and.popc. Of two rows of bits a and b
//             k - 2 popcount(a xor b) = (k - 2 popcount(b)) - 2 popcount(a) + 4 popcount(a and b)
//             where the first is a number of the filter and the second one of the row, counted as it is fetched.
//             Exclusive or would spare that, but from sm_90 on the compiler makes several instructions of it (and on
//             GPUs after sm_90 of both).
//   of bytes  mma.m16n8k32 of bytes without sign and with sign
//
// A multiprocessor counts the bits of 16 words in a cycle by __popc, that is of 512 products, half of what the tensor
// cores of sm_80 multiply in bfloat16, and a quarter of what those of sm_90 do. The instruction above does 16 times as
// many as bfloat16's on sm_80 (NVIDIA, "A100 tensor core GPU architecture", 2020). So there is no other path.
//
// The lane with t = lane % 4 and g = lane / 4 holds (PTX ISA, "Matrix fragments for mma.m16n8k256" and "mma.m16n8k32"):
//   a[0], a[2]   row g, words t and t + 4        a[1], a[3]   row g + 8, the same words
//   b[0], b[1]   filter g, words t and t + 4
//   sums[0..1]   row g, filters 2t and 2t + 1    sums[2..3]   row g + 8, the same filters
// Which words of a row they are does not matter where both factors agree: words t and t + 4 may be any two of a row
// that no other t has.
#pragma once

#include "../device.h"

namespace engine {
namespace cuda {
namespace {

struct alignas(16) Quad {
    uint32_t words[4];
};

#if defined(ENGINE_CUDA_ON_HOST)

__device__ __forceinline__ uint32_t count_bits(uint32_t word) { return uint32_t(__builtin_popcount(word)); }

// A bit for each lane of the warp.
__device__ __forceinline__ uint32_t ballot(bool set) {
    uint32_t bits = uint32_t{set} << threadIdx.x % 32;
    for (int distance = 1; distance < 32; distance *= 2) bits |= __shfl_xor_sync(0xffffffff, bits, distance);
    return bits;
}

// The instruction above, of two words at a time: each lane asks the others for its rows and filters.
template <typename Kind>
__device__ __forceinline__ void multiply_words(uint32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const int row = int(threadIdx.x % 32 / 4) * 4, filter = int(threadIdx.x % 4) * 8;
    const auto pair = [](uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; };
    for (int t = 0; t < 4; ++t) {
        const uint64_t upper = __shfl_sync(0xffffffff, pair(a[0], a[2]), row + t);
        const uint64_t lower = __shfl_sync(0xffffffff, pair(a[1], a[3]), row + t);
        const uint64_t left = __shfl_sync(0xffffffff, pair(b[0], b[1]), filter + t);
        const uint64_t right = __shfl_sync(0xffffffff, pair(b[0], b[1]), filter + 4 + t);
        sums[0] += Kind::product(upper, left);
        sums[1] += Kind::product(upper, right);
        sums[2] += Kind::product(lower, left);
        sums[3] += Kind::product(lower, right);
    }
}

#else

__device__ __forceinline__ uint32_t count_bits(uint32_t word) { return uint32_t(__popc(word)); }
__device__ __forceinline__ uint32_t ballot(bool set) { return __ballot_sync(0xffffffff, set); }

#endif

// What is multiplied: Element is one of a row of activations, of which kInWord make a word.

struct OfBits {
    using Element = uint32_t;
    static constexpr int kInWord = 1;
    static constexpr bool kBits = true;

#if defined(ENGINE_CUDA_ON_HOST)
    static uint32_t product(uint64_t a, uint64_t b) { return uint32_t(__builtin_popcountll(a & b)); }
    static void multiply(uint32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        multiply_words<OfBits>(sums, a, b);
    }
#else
    static __device__ __forceinline__ void multiply(uint32_t (&sums)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
        asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#endif
};

struct OfBytes {
    using Element = uint8_t;
    static constexpr int kInWord = 4;
    static constexpr bool kBits = false;

#if defined(ENGINE_CUDA_ON_HOST)
    static uint32_t product(uint64_t a, uint64_t b) {
        int sum = 0;
        for (int place = 0; place < 64; place += 8) sum += int(uint8_t(a >> place)) * int(int8_t(b >> place));
        return uint32_t(sum);
    }
    static void multiply(uint32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        multiply_words<OfBytes>(sums, a, b);
    }
#else
    static __device__ __forceinline__ void multiply(uint32_t (&sums)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#endif
};

}  // namespace
}  // namespace cuda
}  // namespace engine
