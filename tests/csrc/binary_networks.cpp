// Runs the kernels of networks of one bit of every instruction set on random convolutions, on arrays of exactly the
// size that the contract gives them, for the sanitizers to watch (`make sanitize`); all must give the same integers, and
// the same bits whether thresholds are applied at once or afterwards. Arguments: the number of shapes, and a seed.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cpu/binary.h"
#include "cases.h"

namespace {

using namespace engine;

int64_t words(int64_t bits) { return (bits + 31) / 32; }

BinaryConvolution draw_convolution(Random& random, bool bytes) {
    for (;;) {
        BinaryConvolution s{};
        s.batch = draw(random, 1, 3), s.height = draw(random, 1, 9), s.width = draw(random, 1, 9);
        s.channels = draw(random, 1, 140), s.filters = draw(random, 1, 140);
        s.kernel_h = draw(random, 1, 3), s.kernel_w = draw(random, 1, 3);
        s.stride_h = draw(random, 1, 3), s.stride_w = draw(random, 1, 3);
        s.padding_h = draw(random, 0, 3), s.padding_w = draw(random, 0, 3);
        s.dilation_h = draw(random, 1, 2), s.dilation_w = draw(random, 1, 2);
        s.padding = draw(random, 0, bytes ? 255 : 1);
        const int64_t room_h = s.height + 2 * s.padding_h - s.dilation_h * (s.kernel_h - 1) - 1;
        const int64_t room_w = s.width + 2 * s.padding_w - s.dilation_w * (s.kernel_w - 1) - 1;
        if (room_h < 0 || room_w < 0) continue;
        s.out_h = room_h / s.stride_h + 1, s.out_w = room_w / s.stride_w + 1;
        return s;
    }
}

// Memory of so many bytes, random.
struct Noise : Bytes {
    Noise(Random& random, int64_t size) : Bytes(size) {
        for (int64_t i = 0; i < size; ++i) static_cast<unsigned char*>(get())[i] = static_cast<unsigned char>(random());
    }
};

bool same(const Bytes& left, const Bytes& right, int64_t size) {
    return !std::memcmp(left.get(), right.get(), static_cast<size_t>(size));
}

// Returns how many of the instruction sets give other results than the baseline.
int64_t differing(Random& random, bool bytes, int64_t& calls) {
    const BinaryConvolution s = draw_convolution(random, bytes);
    if (const char* reason = mistake(s, bytes)) return std::printf("a convolution is refused: %s\n", reason), 1;
    const int64_t depth = bytes ? s.channels : words(s.channels) * 4, area = s.kernel_h * s.kernel_w;
    const int64_t panels = words(s.filters), rows = s.batch * s.out_h * s.out_w;
    const int64_t panel = bytes ? (area * depth + 3) / 4 * 16 : (area * depth / 4 + 1) / 2 * 2 * kPanel * 4;
    const Noise activations(random, s.batch * s.height * s.width * depth), weights(random, panels * panel);
    const Noise thresholds(random, panels * kPanel * 4), inverted(random, panels * 4);
    const Noise values(random, rows * s.channels * 4);
    const int64_t sum_bytes = rows * s.filters * 4, bit_bytes = rows * panels * 4;
    const int64_t sign_bytes = rows * words(s.channels) * 4;
    const Bytes sums(sum_bytes), bits(bit_bytes), signs(sign_bytes);
    const auto run = [&](const BinaryKernels& kernels, int threads, const Bytes& to_sums, const Bytes& to_bits,
                         const Bytes& to_signs) {
        const Bytes workspace(workspace_bytes(s, bytes, threads)), later(bit_bytes);
        const auto as = [](const Bytes& of) { return static_cast<uint32_t*>(of.get()); };
        auto* const at = static_cast<int32_t*>(to_sums.get());
        const auto* const least = static_cast<const int32_t*>(thresholds.get());
        kernels.convolve(s, bytes, activations.get(), as(weights), {at, nullptr, nullptr, nullptr}, workspace.get(),
                         threads);
        kernels.convolve(s, bytes, activations.get(), as(weights), {nullptr, as(to_bits), least, as(inverted)},
                         workspace.get(), threads);
        kernels.threshold(at, rows, s.filters, {nullptr, as(later), least, as(inverted)}, threads);
        kernels.pack(static_cast<const float*>(values.get()), rows, s.channels, as(to_signs), threads);
        calls += 4;
        return same(later, to_bits, bit_bytes);
    };
    const auto* const* kernels = binary_kernels();
    while (kernels[1]) ++kernels;  // the baseline is the last
    int64_t wrong = run(**kernels, 1, sums, bits, signs) ? 0 : 1;
    for (kernels = binary_kernels(); *kernels; ++kernels) {
        if (!(*kernels)->supported()) continue;
        const Bytes other_sums(sum_bytes), other_bits(bit_bytes), other_signs(sign_bytes);
        const bool agrees = run(**kernels, 3, other_sums, other_bits, other_signs) &&
                            same(sums, other_sums, sum_bytes) && same(bits, other_bits, bit_bytes) &&
                            same(signs, other_signs, sign_bytes);
        if (agrees) continue;
        ++wrong;
        std::printf("%s differs from baseline\n", (*kernels)->name);
    }
    return wrong;
}

}  // namespace

int main(int argc, char** argv) {
    const int shapes = argc > 1 ? std::atoi(argv[1]) : 20;
    Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
    int64_t calls = 0, failures = 0;
    for (int i = 0; i < shapes; ++i) failures += differing(random, i % 2 != 0, calls);
    std::printf("%d shapes, %lld calls, %lld failures\n", shapes, static_cast<long long>(calls),
                static_cast<long long>(failures));
    return failures != 0;
}
