#include "philox.h"

namespace engine {
namespace {

constexpr int kRounds = 10;
constexpr int kLanes = 16;  // one AVX-512 register of words; narrower machines take several

// The generator's constants: two multipliers found by search, and the Weyl increments of the key
// (the golden ratio and the square root of 3 less 1).
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

// Counters side by side, word by word, so that the compiler turns the loop over lanes into vector code.
struct Counters {
    uint32_t word[4][kLanes];
};

void encrypt(Counters& counters, uint64_t key) {
    auto& [a, b, c, d] = counters.word;
    auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < kRounds; ++round, k0 += kWeyl0, k1 += kWeyl1) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const uint64_t product0 = uint64_t{kMultiplier0} * a[lane];
            const uint64_t product1 = uint64_t{kMultiplier1} * c[lane];
            a[lane] = static_cast<uint32_t>(product1 >> 32) ^ b[lane] ^ k0;
            b[lane] = static_cast<uint32_t>(product1);
            c[lane] = static_cast<uint32_t>(product0 >> 32) ^ d[lane] ^ k1;
            d[lane] = static_cast<uint32_t>(product0);
        }
    }
}

// Calls put(sample, block, words) with the four words of every block.
template <typename Put>
const char* for_all(uint64_t key, const int64_t* samples, int64_t n, int64_t blocks, Put put) {
    if (n < 0) return "philox: the number of samples is negative";
    if (blocks < 0 || blocks > int64_t{1} << 32) return "philox: blocks must be from 0 to 2^32";
    Counters counters{};
    for (int64_t first = 0; first < n; first += kLanes) {
        const int lanes = static_cast<int>(n - first < kLanes ? n - first : kLanes);
        for (int64_t block = 0; block < blocks; ++block) {
            for (int lane = 0; lane < lanes; ++lane) {
                const auto sample = static_cast<uint64_t>(samples[first + lane]);
                counters.word[0][lane] = static_cast<uint32_t>(sample);
                counters.word[1][lane] = static_cast<uint32_t>(sample >> 32);
                counters.word[2][lane] = static_cast<uint32_t>(block);
                counters.word[3][lane] = 0;
            }
            encrypt(counters, key);
            for (int lane = 0; lane < lanes; ++lane) {
                const uint32_t words[4] = {counters.word[0][lane], counters.word[1][lane], counters.word[2][lane],
                                           counters.word[3][lane]};
                put(first + lane, block, words);
            }
        }
    }
    return nullptr;
}

}  // namespace

const char* philox(uint64_t key, const int64_t* samples, int64_t n, int64_t blocks, int64_t* out) noexcept {
    return for_all(key, samples, n, blocks, [=](int64_t sample, int64_t block, const uint32_t* words) {
        int64_t* row = out + (sample * blocks + block) * 4;
        for (int word = 0; word < 4; ++word) row[word] = words[word];
    });
}

const char* uniform(uint64_t key, const int64_t* samples, int64_t n, int64_t draws, float* out) noexcept {
    if (draws < 0) return "uniform: the number of draws is negative";
    const int64_t blocks = draws / 4 + (draws % 4 != 0);
    return for_all(key, samples, n, blocks, [=](int64_t sample, int64_t block, const uint32_t* words) {
        const int64_t left = draws - 4 * block;
        float* row = out + sample * draws + 4 * block;
        for (int word = 0; word < (left < 4 ? left : 4); ++word)
            row[word] = static_cast<float>(words[word] >> 8) * 0x1p-24f;
    });
}

}  // namespace engine
