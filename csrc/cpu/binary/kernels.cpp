#include "../binary.h"

#include "../team.h"
#include "patches.h"
#include "tile.h"

namespace engine::ENGINE_ISA {
namespace {

static_assert(kMostThreads <= Team::kMostThreads, "each has a place in the workspace");

// Writes the sums of a row with a panel, or their bits.
ENGINE_INLINE void put(const int32_t* sums, int64_t row, int64_t panel, int64_t filters, const BinaryOutput& out) {
    if (out.sums) {
        const int64_t count = smaller(filters - panel * kPanel, kPanel);
        std::memcpy(out.sums + row * filters + panel * kPanel, sums, static_cast<std::size_t>(count) * sizeof(int32_t));
        return;
    }
    typedef int32_t Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
    uint32_t bits = 0;
    for (int i = 0; i < kVectors; ++i) {
        const Integers values = *reinterpret_cast<const Unaligned*>(sums + i * kWords);
        const Integers least = *reinterpret_cast<const Unaligned*>(out.thresholds + panel * kPanel + i * kWords);
        bits |= at_least(values, least) << (i * kWords);
    }
    out.bits[row * ceil_div(filters, kPanel) + panel] = bits ^ out.inverted[panel];
}

// What to multiply rows with a panel of: bits, or bytes.
struct OfBits {
    typedef uint32_t Element;
    static constexpr int kRows = kRowsOfBits;
    static constexpr int64_t kMultiple = 2;

    static int64_t depth(const BinaryConvolution& shape) { return ceil_div(shape.channels, 32); }
    // Words of a panel for each element of a row.
    static int64_t panel_words(int64_t length) { return length * kPanel; }

    static void fill_border(const BinaryConvolution& shape, uint32_t* border) {
        for (int64_t i = 0; i < depth(shape); ++i) border[i] = shape.padding ? 0xffffffff : 0;
        if (shape.padding && shape.channels % 32) border[shape.channels / 32] = (uint32_t{1} << shape.channels % 32) - 1;
    }
    static void prepare(uint32_t* rows, int64_t count) { pair_words(rows, count); }

    template <int M>
    static void sum(const uint32_t* rows, int64_t length, const uint32_t* panel, int64_t k, int32_t (*sums)[kPanel]) {
        sum_bits<M>(rows, length, panel, length / 2, static_cast<int32_t>(k), sums);
    }
};

struct OfBytes {
    typedef uint8_t Element;
    static constexpr int kRows = kRowsOfBytes;
    static constexpr int64_t kMultiple = 4;

    static int64_t depth(const BinaryConvolution& shape) { return shape.channels; }
    static int64_t panel_words(int64_t length) { return length; }

    static void fill_border(const BinaryConvolution& shape, uint8_t* border) {
        for (int64_t i = 0; i < shape.channels; ++i) border[i] = static_cast<uint8_t>(shape.padding);
    }
    static void prepare(uint8_t*, int64_t) {}

    template <int M>
    static void sum(const uint8_t* rows, int64_t length, const uint32_t* panel, int64_t, int32_t (*sums)[kPanel]) {
        sum_bytes<M>(rows, length, panel, length / 4, sums);
    }
};

// Rows `first` to `last` - 1 with one panel, M rows at a time, the last ones by halves of M.
template <typename Of, int M = Of::kRows>
void multiply(const typename Of::Element* rows, int64_t length, const uint32_t* panels, int64_t k, int64_t first,
              int64_t last, int64_t panel, int64_t filters, const BinaryOutput& out) {
    alignas(64) int32_t sums[M][kPanel];
    const uint32_t* own = panels + panel * Of::panel_words(length);
    for (; first + M <= last; first += M, rows += M * length) {
        Of::template sum<M>(rows, length, own, k, sums);
        for (int row = 0; row < M; ++row) put(sums[row], first + row, panel, filters, out);
    }
    if constexpr (M > 1)
        if (first < last) multiply<Of, M / 2>(rows, length, panels, k, first, last, panel, filters, out);
}

template <typename Of>
void convolve_as(const BinaryConvolution& shape, const void* activations, const uint32_t* panels,
                 const BinaryOutput& out, void* workspace, int threads) {
    typedef typename Of::Element Element;
    const int64_t depth = Of::depth(shape), area = shape.kernel_h * shape.kernel_w;
    const int64_t length = round_up(area * depth, Of::kMultiple);
    const Patches<Element> patches{shape, static_cast<const Element*>(activations), depth, length};
    const int64_t rows = shape.batch * shape.out_h * shape.out_w, blocks = ceil_div(rows, kBlock);
    const int64_t count = ceil_div(shape.filters, kPanel);
    // Where there are few blocks, threads share the panels of one too, each with rows that it gathers for itself.
    const int64_t parts = smaller(count, ceil_div(threads > 1 ? 4 * threads : 1, blocks));
    Element* const border = static_cast<Element*>(workspace);
    Of::fill_border(shape, border);
    const int64_t each = round_up(kBlock * length * static_cast<int64_t>(sizeof(Element)), 64);
    uint8_t* const places = static_cast<uint8_t*>(workspace) +
                            round_up(depth * static_cast<int64_t>(sizeof(Element)), 64);
    share(threads, blocks * parts, [&](int64_t item) {
        Element* const own = reinterpret_cast<Element*>(places + Team::this_thread() * each);
        const int64_t first = item / parts * kBlock, last = smaller(rows, first + kBlock), part = item % parts;
        patches.gather(first, last, border, own);
        Of::prepare(own, (last - first) * length);
        for (int64_t panel = part * count / parts; panel < (part + 1) * count / parts; ++panel)
            multiply<Of>(own, length, panels, area * shape.channels, first, last, panel, shape.filters, out);
    });
}

void convolve(const BinaryConvolution& shape, bool bytes, const void* activations, const uint32_t* panels,
              const BinaryOutput& out, void* workspace, int threads) {
    if (threads > kMostThreads) threads = kMostThreads;
    (bytes ? convolve_as<OfBytes> : convolve_as<OfBits>)(shape, activations, panels, out, workspace, threads);
}

void threshold(const int32_t* sums, int64_t rows, int64_t filters, const BinaryOutput& out, int threads) {
    BinaryOutput bits = out;
    bits.sums = nullptr;
    share(threads, ceil_div(rows, kBlock), [&](int64_t block) {
        for (int64_t row = block * kBlock; row < smaller(rows, (block + 1) * kBlock); ++row)
            for (int64_t panel = 0; panel < ceil_div(filters, kPanel); ++panel) {
                alignas(64) int32_t some[kPanel] = {};
                const int64_t count = smaller(filters - panel * kPanel, kPanel);
                std::memcpy(some, sums + row * filters + panel * kPanel,
                            static_cast<std::size_t>(count) * sizeof(int32_t));
                put(some, row, panel, filters, bits);
            }
    });
}

void pack(const float* values, int64_t rows, int64_t length, uint32_t* bits, int threads) {
    const int64_t words = ceil_div(length, 32);
    share(threads, ceil_div(rows, kBlock), [&](int64_t block) {
        for (int64_t row = block * kBlock; row < smaller(rows, (block + 1) * kBlock); ++row)
            for (int64_t word = 0; word < words; ++word) {
                const float* from = values + row * length + word * 32;
                const int64_t count = smaller(length - word * 32, 32);
                uint32_t set = 0;
                if (count == 32) {
                    for (int i = 0; i < 32; ++i) set |= static_cast<uint32_t>(from[i] >= 0) << i;
                } else {
                    for (int64_t i = 0; i < count; ++i) set |= static_cast<uint32_t>(from[i] >= 0) << i;
                }
                bits[row * words + word] = set;
            }
    });
}

bool supported() {
#if defined(__AVX512F__)
    const bool vectors = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512vl");
#elif defined(__AVX2__)
    const bool vectors = true;
#endif
#if defined(__AVX2__)
    const bool usual = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                       __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#if defined(__AVX512VPOPCNTDQ__)
    return usual && vectors && __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni");
#else
    return usual && vectors;
#endif
#else
    return true;
#endif
}

#define ENGINE_TEXT_OF(name) #name
#define ENGINE_TEXT(name) ENGINE_TEXT_OF(name)

}  // namespace

extern const BinaryKernels binary_kernels;
const BinaryKernels binary_kernels{ENGINE_TEXT(ENGINE_ISA), supported, convolve, threshold, pack};

}  // namespace engine::ENGINE_ISA
