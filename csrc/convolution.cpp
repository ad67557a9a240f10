#include "convolution.h"

#include <initializer_list>

namespace engine {

namespace {

constexpr int64_t kSide = int64_t{1} << 24;      // the most of any size along an axis
constexpr int64_t kElements = int64_t{1} << 48;  // the most of an array: two million gigabytes of doubles
constexpr int64_t kProducts = int64_t{1} << 52;  // the most multiplications, and so the most elements of patches

// Whether an axis gives `out` places; none of its sizes is too large for sums and products of two of them.
bool fits(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, int64_t out) {
    for (int64_t value : {size, kernel, stride, dilation, out})
        if (value < 1 || value > kSide) return false;
    if (padding < 0 || padding > kSide) return false;
    const int64_t places = size + 2 * padding - dilation * (kernel - 1);
    return places >= 1 && out == (places - 1) / stride + 1;
}

// Whether a product of sizes from 1 on is at most `most`; itself it is never computed, as it may be too large to be.
bool within(int64_t most, std::initializer_list<int64_t> sizes) {
    for (int64_t size : sizes) most /= size;
    return most >= 1;
}

// Whether every array of a shape that fits, padding included, and the work are so small that the algorithms' own sums
// (tiles that go beyond the output, vectors that go beyond the channels, bytes) stay far below 2^63.
bool countable(const ConvShape& s) {
    const int64_t rows = s.height + 2 * s.padding_h, columns = s.width + 2 * s.padding_w;
    const int64_t per_group = s.channels / s.groups;
    return within(kElements, {s.batch, s.channels, rows, columns}) &&
           within(kElements, {s.filters, per_group, s.kernel_h, s.kernel_w}) &&
           within(kElements, {s.batch, s.filters, s.out_h, s.out_w}) &&
           within(kProducts, {s.batch, s.filters, s.out_h, s.out_w, per_group, s.kernel_h, s.kernel_w});
}

}  // namespace

const char* mistake(const ConvShape& s) {
    if (s.batch < 1 || s.channels < 1 || s.filters < 1 || s.groups < 1) return "a size is less than 1";
    if (s.channels % s.groups || s.filters % s.groups) return "channels and filters must be multiples of the groups";
    if (!fits(s.height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.out_h) ||
        !fits(s.width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.out_w))
        return "the sizes of images, filter and output do not fit together";
    if (!countable(s)) return "it has more elements than can be counted in bytes";
    return nullptr;
}

}  // namespace engine
