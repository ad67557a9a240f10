#include "binary.h"

namespace engine {

#if defined(__x86_64__)
namespace vpopcntdq {
extern const BinaryKernels binary_kernels;
}
namespace avx512 {
extern const BinaryKernels binary_kernels;
}
namespace avx2 {
extern const BinaryKernels binary_kernels;
}
#endif
namespace baseline {
extern const BinaryKernels binary_kernels;
}

namespace {

constexpr int64_t kMost = 1 << 30;       // of what a sum adds up, and of any size
constexpr int64_t kMostBytes = 8 << 20;  // of the bytes that a sum adds up: times 255 they stay below 2^31

int64_t rounded(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

const BinaryKernels* const kAll[] = {
#if defined(__x86_64__)
    &vpopcntdq::binary_kernels, &avx512::binary_kernels, &avx2::binary_kernels,
#endif
    &baseline::binary_kernels,  nullptr,
};

}  // namespace

const char* mistake(const BinaryConvolution& shape, bool bytes) {
    const int64_t sizes[] = {shape.batch,    shape.height,   shape.width,      shape.channels,   shape.filters,
                             shape.kernel_h, shape.kernel_w, shape.stride_h,   shape.stride_w,   shape.dilation_h,
                             shape.dilation_w, shape.out_h,  shape.out_w};
    for (int64_t size : sizes)
        if (size < 1 || size > kMost) return "a size is below 1 or too large";
    if (shape.padding_h < 0 || shape.padding_w < 0 || shape.padding_h > kMost || shape.padding_w > kMost)
        return "the padding is negative or too large";
    if (shape.padding < 0 || shape.padding > (bytes ? 255 : 1)) return "the border's value is none of the input's";
    const auto fits = [](int64_t size, int64_t padding, int64_t kernel, int64_t dilation, int64_t stride, int64_t out) {
        const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
        return room >= 0 && out == room / stride + 1;
    };
    if (!fits(shape.height, shape.padding_h, shape.kernel_h, shape.dilation_h, shape.stride_h, shape.out_h) ||
        !fits(shape.width, shape.padding_w, shape.kernel_w, shape.dilation_w, shape.stride_w, shape.out_w))
        return "the output's size does not follow from the others, or the kernel does not fit into the image";
    int64_t sum, rows, all;
    if (__builtin_mul_overflow(shape.kernel_h * shape.kernel_w, shape.channels, &sum) ||
        sum > (bytes ? kMostBytes : kMost))
        return "a sum has too many terms";
    if (__builtin_mul_overflow(shape.batch, shape.out_h, &rows) || __builtin_mul_overflow(rows, shape.out_w, &rows) ||
        __builtin_mul_overflow(rows, shape.filters, &all) || all > INT64_MAX / 8)
        return "the output is too large";
    return nullptr;
}

int64_t workspace_bytes(const BinaryConvolution& shape, bool bytes, int threads) {
    const int64_t size = bytes ? 1 : 4, depth = bytes ? shape.channels : (shape.channels + 31) / 32;
    const int64_t length = rounded(shape.kernel_h * shape.kernel_w * depth, bytes ? 4 : 2);
    const int64_t teams = threads < kMostThreads ? threads : kMostThreads;
    return rounded(depth * size, 64) + teams * rounded(kBlock * length * size, 64);
}

const BinaryKernels* const* binary_kernels() { return kAll; }

}  // namespace engine
