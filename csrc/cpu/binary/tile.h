// The innermost loops: the sums of some rows with the 32 filters of a panel.
#pragma once

#include "lanes.h"

namespace engine::ENGINE_ISA {
namespace {

// How many vectors and rows are summed at a time: what fits into the registers, two vectors a row for bits (the count
// and the bits of weight 1), one for bytes.
constexpr int kGroup = 2;
constexpr int kRowsOfBits = kVectorRegisters == 32 ? 5 : 2;
constexpr int kRowsOfBytes = kVectorRegisters == 32 ? 8 : 4;

// rows [..][2 * pairs]: of each two words u, v the first, and u xor v. sums: k - 2 * the bits that differ.
template <int M>
ENGINE_INLINE void sum_bits(const uint32_t* rows, int64_t stride, const uint32_t* panel, int64_t pairs, int32_t k,
                            int32_t (*sums)[kPanel]) {
    for (int group = 0; group < kVectors; group += kGroup) {
        Count twos[M][kGroup];
        Words ones[M][kGroup];
        for (int row = 0; row < M; ++row)
            for (int i = 0; i < kGroup; ++i) ones[row][i] = Words{};
        const uint32_t* at = panel + group * kWords;
        for (int64_t pair = 0; pair < pairs;) {
            const int64_t last = pairs - pair > Count::kMost ? pair + Count::kMost : pairs;
            for (; pair < last; ++pair, at += 2 * kPanel) {
                Words first[kGroup], both[kGroup];
                for (int i = 0; i < kGroup; ++i) {
                    first[i] = load_words(at + i * kWords);
                    both[i] = load_words(at + kPanel + i * kWords);
                }
                for (int row = 0; row < M; ++row) {
                    const uint32_t* words = rows + row * stride + 2 * pair;
                    const Words u = all(words[0]), uv = all(words[1]);
                    for (int i = 0; i < kGroup; ++i)
                        twos[row][i].add(add_two(ones[row][i], first[i] ^ u, both[i] ^ uv));
                }
            }
            for (int row = 0; row < M; ++row)
                for (int i = 0; i < kGroup; ++i) twos[row][i].carry();
        }
        for (int row = 0; row < M; ++row)
            for (int i = 0; i < kGroup; ++i) {
                Count single;
                single.add(ones[row][i]);
                single.carry();
                const Words differing = 2 * twos[row][i].total + single.total;
                store_integers(sums[row] + (group + i) * kWords, k - 2 * as<Integers>(differing));
            }
    }
}

// rows [..][4 * quads] bytes.
template <int M>
ENGINE_INLINE void sum_bytes(const uint8_t* rows, int64_t stride, const uint32_t* panel, int64_t quads,
                             int32_t (*sums)[kPanel]) {
    for (int group = 0; group < kVectors; group += kGroup) {
        Integers totals[M][kGroup];
        for (int row = 0; row < M; ++row)
            for (int i = 0; i < kGroup; ++i) totals[row][i] = Integers{};
        for (int64_t quad = 0; quad < quads; ++quad) {
            Bytes signs[kGroup];
            for (int i = 0; i < kGroup; ++i) signs[i] = signs_of(panel + 4 * quad, group + i);
            for (int row = 0; row < M; ++row) {
                uint32_t bytes;
                std::memcpy(&bytes, rows + row * stride + 4 * quad, sizeof bytes);
                for (int i = 0; i < kGroup; ++i) totals[row][i] = add_products(totals[row][i], bytes, signs[i]);
            }
        }
        for (int row = 0; row < M; ++row)
            for (int i = 0; i < kGroup; ++i) store_integers(sums[row] + (group + i) * kWords, totals[row][i]);
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
