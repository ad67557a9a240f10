// Runs the GPU's kernels of networks of one bit, compiled for the host, on random convolutions, on arrays of exactly
// the size that the contract gives them, for the sanitizers to watch; the sums must be those of the definition, and the
// bits what the thresholds make of them. Arguments: the number of shapes, and a seed.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cuda/binary/binary.h"
#include "cases.h"

namespace {

using namespace engine;

int64_t words(int64_t bits) { return (bits + 31) / 32; }
int64_t whole(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

BinaryConvolution draw_convolution(Random& random, bool bytes) {
    for (;;) {
        BinaryConvolution s{};
        s.batch = draw(random, 1, 3), s.height = draw(random, 1, 8), s.width = draw(random, 1, 8);
        s.channels = draw(random, 0, 2) ? draw(random, 1, 140) : 128 * draw(random, 1, 2);
        s.filters = draw(random, 1, 140), s.kernel_h = draw(random, 1, 3), s.kernel_w = draw(random, 1, 3);
        s.stride_h = draw(random, 1, 3), s.stride_w = draw(random, 1, 3);
        s.padding_h = draw(random, 0, 3), s.padding_w = draw(random, 0, 3);
        s.dilation_h = draw(random, 1, 2), s.dilation_w = draw(random, 1, 2);
        s.padding = draw(random, 0, bytes ? 255 : 1);
        if (draw(random, 0, 4) == 0) s.kernel_h = s.height, s.kernel_w = s.width, s.padding_h = s.padding_w = 0;
        const int64_t room_h = s.height + 2 * s.padding_h - s.dilation_h * (s.kernel_h - 1) - 1;
        const int64_t room_w = s.width + 2 * s.padding_w - s.dilation_w * (s.kernel_w - 1) - 1;
        if (room_h < 0 || room_w < 0) continue;
        s.out_h = room_h / s.stride_h + 1, s.out_w = room_w / s.stride_w + 1;
        return s;
    }
}

// An array that numbers are written into and read from.
template <typename T>
struct Array : Bytes {
    explicit Array(int64_t count) : Bytes(count * int64_t{sizeof(T)}) {}
    T* data() const { return static_cast<T*>(get()); }
    T& operator[](int64_t place) const { return data()[place]; }
};

// One convolution: its numbers as they are, and as the kernels take them.
struct Case {
    BinaryConvolution s;
    bool bytes;
    int64_t terms, rows, stride;
    std::vector<int> pixels, weights;
    Array<uint8_t> activations, laid_out;
    Array<int32_t> minus_total;

    int64_t depth() const { return bytes ? s.channels : words(s.channels) * 4; }  // bytes of a pixel

    Case(Random& random, const BinaryConvolution& shape, bool of_bytes)
        : s(shape), bytes(of_bytes), terms(s.kernel_h * s.kernel_w * s.channels), rows(s.batch * s.out_h * s.out_w),
          stride(whole(s.kernel_h * s.kernel_w * depth(), 4 * kRowWords)),
          pixels(static_cast<size_t>(s.batch * s.height * s.width * s.channels)),
          weights(static_cast<size_t>(s.filters * terms)), activations(s.batch * s.height * s.width * depth()),
          laid_out(s.filters * stride), minus_total(s.filters) {
        for (int& pixel : pixels) pixel = static_cast<int>(bytes ? draw(random, 0, 255) : draw(random, 0, 1) * 2 - 1);
        for (int& weight : weights) weight = static_cast<int>(draw(random, 0, 1) * 2 - 1);
        std::memset(activations.get(), 0, static_cast<size_t>(s.batch * s.height * s.width * depth()));
        std::memset(laid_out.get(), 0, static_cast<size_t>(s.filters * stride));
        for (int64_t i = 0; i < static_cast<int64_t>(pixels.size()); ++i)
            put(activations, i / s.channels * depth(), i % s.channels, pixels[static_cast<size_t>(i)], bytes);
        for (int64_t filter = 0; filter < s.filters; ++filter) {
            minus_total[filter] = 0;
            for (int64_t i = 0; i < terms; ++i) {
                const int weight = weights[static_cast<size_t>(filter * terms + i)];
                minus_total[filter] -= weight;
                put(laid_out, filter * stride + i / s.channels * depth(), i % s.channels, weight, bytes);
            }
        }
    }

    static void put(const Array<uint8_t>& to, int64_t begin, int64_t place, int value, bool bytes) {
        if (bytes)
            to[begin + place] = static_cast<uint8_t>(value);
        else if (value > 0)
            to[begin + place / 8] = static_cast<uint8_t>(to[begin + place / 8] | 1 << place % 8);
    }

    int sum(int64_t row, int64_t filter) const {
        const int64_t x0 = row % s.out_w * s.stride_w - s.padding_w;
        const int64_t y0 = row / s.out_w % s.out_h * s.stride_h - s.padding_h, image = row / s.out_w / s.out_h;
        const int border = static_cast<int>(bytes || s.padding ? s.padding : -1);
        int total = 0;
        for (int64_t i = 0; i < terms; ++i) {
            const int64_t tap = i / s.channels, y = y0 + tap / s.kernel_w * s.dilation_h;
            const int64_t x = x0 + tap % s.kernel_w * s.dilation_w;
            const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
            const int64_t place = ((image * s.height + y) * s.width + x) * s.channels + i % s.channels;
            total += (inside ? pixels[static_cast<size_t>(place)] : border) *
                     weights[static_cast<size_t>(filter * terms + i)];
        }
        return total;
    }
};

bool fine(cudaError_t error) {
    if (error != cudaSuccess) std::printf("a launch failed: %s\n", host::failure().c_str());
    return error == cudaSuccess;
}

// Returns whether a convolution, its bits and those packed afterwards are right.
bool right(Random& random, bool bytes) {
    const Case one(random, draw_convolution(random, bytes), bytes);
    const BinaryConvolution& s = one.s;
    const int64_t panels = words(s.filters);
    const Array<int32_t> sums(one.rows * s.filters), least(panels * kPanel);
    const Array<uint32_t> bits(one.rows * panels), later(one.rows * panels), inverted(panels);
    for (int64_t i = 0; i < panels * kPanel; ++i)
        least[i] = i < s.filters ? static_cast<int32_t>(draw(random, -9, 9)) : INT32_MAX;
    for (int64_t i = 0; i < panels; ++i) inverted[i] = static_cast<uint32_t>(random());
    if (s.filters % 32) inverted[panels - 1] &= (1u << s.filters % 32) - 1;
    const CudaBinaryKernels& kernels = cuda::binary;
    const CudaBinaryWeights weights{one.laid_out.get(), bytes ? nullptr : one.minus_total.data()};
    const BinaryOutput to_bits{nullptr, bits.data(), least.data(), inverted.data()};
    const BinaryOutput to_later{nullptr, later.data(), least.data(), inverted.data()};
    const BinaryOutput to_sums{sums.data(), nullptr, nullptr, nullptr};
    if (kernels.refuses(s, bytes)) return std::printf("refused: %s\n", kernels.refuses(s, bytes)), false;
    if (!fine(kernels.convolve(s, bytes, one.activations.get(), weights, to_sums, nullptr)) ||
        !fine(kernels.convolve(s, bytes, one.activations.get(), weights, to_bits, nullptr)) ||
        !fine(kernels.threshold(sums.data(), one.rows, s.filters, to_later, nullptr)))
        return false;
    const Array<float> values(one.rows * s.filters);
    const Array<uint32_t> signs(one.rows * panels);
    for (int64_t row = 0; row < one.rows; ++row)
        for (int64_t filter = 0; filter < panels * 32; ++filter) {
            const bool there = filter < s.filters, set = bits[row * panels + filter / 32] >> filter % 32 & 1;
            const int sum = there ? one.sum(row, filter) : 0;
            if (there && sums[row * s.filters + filter] != sum) return std::printf("a sum is wrong\n"), false;
            const bool turned = inverted[filter / 32] >> filter % 32 & 1;
            if (set != (there && (sum >= least[filter]) != turned)) return std::printf("a bit is wrong\n"), false;
            if (there) values[row * s.filters + filter] = set ? 0.f : -1.f;
        }
    if (!fine(kernels.pack(values.data(), one.rows, s.filters, signs.data(), nullptr))) return false;
    const size_t size = static_cast<size_t>(one.rows * panels * 4);
    if (!std::memcmp(bits.get(), later.get(), size) && !std::memcmp(bits.get(), signs.get(), size)) return true;
    return std::printf("bits that were packed afterwards differ\n"), false;
}

}  // namespace

int main(int argc, char** argv) {
    const int shapes = argc > 1 ? std::atoi(argv[1]) : 20;
    Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
    int failures = 0;
    for (int i = 0; i < shapes; ++i) {
        host::seed = i % 4 < 2 ? 0 : random();
        failures += !right(random, i % 2 != 0);
    }
    std::printf("%d shapes, %d failures\n", shapes, failures);
    return failures != 0;
}
