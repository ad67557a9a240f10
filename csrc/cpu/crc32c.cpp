// CRC-32C (Castagnoli): by the processor's instruction where there is one, by tables elsewhere.
//
// The instruction takes three cycles to finish but another can start in each, so three parts of a block are summed at
// once. Their sums are joined as sums are linear: the sum of A followed by B is that of A followed by as many zero
// bytes as B has, xor that of B.
#include <cstring>

#include "pictures.h"

namespace engine {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // its bits in reverse, as RFC 3720 transmits them
constexpr int64_t kPart = 1024;               // bytes of each of the three parts

// bytes[k][b]: what byte b does to a sum when k zero bytes come after it.
struct Tables {
    uint32_t bytes[8][256];
    uint32_t zeros[4][256];  // what kPart zero bytes make of byte number k of a sum

    Tables() {
        for (uint32_t value = 0; value < 256; ++value) {
            uint32_t sum = value;
            for (int bit = 0; bit < 8; ++bit) sum = sum & 1 ? sum >> 1 ^ kPolynomial : sum >> 1;
            bytes[0][value] = sum;
        }
        for (int k = 1; k < 8; ++k)
            for (int value = 0; value < 256; ++value) bytes[k][value] = zero_byte(bytes[k - 1][value]);
        uint32_t of_bit[32];
        for (int bit = 0; bit < 32; ++bit) {
            of_bit[bit] = uint32_t{1} << bit;
            for (int64_t count = 0; count < kPart; ++count) of_bit[bit] = zero_byte(of_bit[bit]);
        }
        for (int k = 0; k < 4; ++k)
            for (int value = 0; value < 256; ++value) {
                zeros[k][value] = 0;
                for (int bit = 0; bit < 8; ++bit)
                    if (value >> bit & 1) zeros[k][value] ^= of_bit[8 * k + bit];
            }
    }

    uint32_t zero_byte(uint32_t sum) const { return sum >> 8 ^ bytes[0][sum & 255]; }
    uint32_t zero_part(uint32_t sum) const {
        return zeros[0][sum & 255] ^ zeros[1][sum >> 8 & 255] ^ zeros[2][sum >> 16 & 255] ^ zeros[3][sum >> 24];
    }
};

const Tables& tables() {
    static const Tables kTables;
    return kTables;
}

uint64_t eight(const uint8_t* data) {
    uint64_t word;
    std::memcpy(&word, data, sizeof word);
    return word;
}

// Eight bytes at a time (Kounavis and Berry, "Novel table lookup-based algorithms for high-performance CRC
// generation", 2008).
uint32_t by_tables(uint32_t sum, const uint8_t* data, int64_t bytes) {
    const Tables& table = tables();
    for (; bytes >= 8; data += 8, bytes -= 8) {
        const uint32_t first = data[0] | uint32_t{data[1]} << 8 | uint32_t{data[2]} << 16 | uint32_t{data[3]} << 24;
        const uint32_t low = sum ^ first;
        sum = table.bytes[7][low & 255] ^ table.bytes[6][low >> 8 & 255] ^ table.bytes[5][low >> 16 & 255] ^
              table.bytes[4][low >> 24] ^ table.bytes[3][data[4]] ^ table.bytes[2][data[5]] ^
              table.bytes[1][data[6]] ^ table.bytes[0][data[7]];
    }
    for (; bytes > 0; ++data, --bytes) sum = sum >> 8 ^ table.bytes[0][(sum ^ *data) & 255];
    return sum;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t by_instruction(uint32_t sum, const uint8_t* data, int64_t bytes) {
    const Tables& table = tables();
    for (; bytes >= 3 * kPart; data += 3 * kPart, bytes -= 3 * kPart) {
        uint64_t first = sum, second = 0, third = 0;
        for (int64_t at = 0; at < kPart; at += 8) {
            first = __builtin_ia32_crc32di(first, eight(data + at));
            second = __builtin_ia32_crc32di(second, eight(data + kPart + at));
            third = __builtin_ia32_crc32di(third, eight(data + 2 * kPart + at));
        }
        const uint32_t two = table.zero_part(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
        sum = table.zero_part(two) ^ static_cast<uint32_t>(third);
    }
    uint64_t rest = sum;
    for (; bytes >= 8; data += 8, bytes -= 8) rest = __builtin_ia32_crc32di(rest, eight(data));
    sum = static_cast<uint32_t>(rest);
    for (; bytes > 0; ++data, --bytes) sum = __builtin_ia32_crc32qi(sum, *data);
    return sum;
}
#endif

}  // namespace

uint32_t crc32c(const uint8_t* data, int64_t bytes) noexcept {
#if defined(__x86_64__)
    static const bool kHere = __builtin_cpu_supports("sse4.2");
    if (kHere) return ~by_instruction(~uint32_t{0}, data, bytes);
#endif
    return ~by_tables(~uint32_t{0}, data, bytes);
}

}  // namespace engine
