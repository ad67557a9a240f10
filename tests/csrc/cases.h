// Random convolutions and memory of exactly the size of their arrays, for the programs that the sanitizers watch.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/convolution.h"

namespace engine {

// Memory of exactly so many bytes at an address that is a multiple of `alignment`, filled with NaN.
class Bytes {
public:
    explicit Bytes(int64_t size, size_t alignment = 64) : size_(size) {
        if (posix_memalign(&data_, alignment, static_cast<size_t>(size > 0 ? size : 1))) std::abort();
        std::memset(data_, 0xFF, static_cast<size_t>(size));
    }
    ~Bytes() { std::free(data_); }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    void* get() const { return size_ > 0 ? data_ : nullptr; }

private:
    void* data_ = nullptr;
    int64_t size_;
};

inline int64_t images_of(const ConvShape& s) { return s.batch * s.height * s.width * s.channels; }
inline int64_t outputs_of(const ConvShape& s) { return s.batch * s.out_h * s.out_w * s.filters; }
inline int64_t weights_of(const ConvShape& s) { return s.filters * s.kernel_h * s.kernel_w * (s.channels / s.groups); }

struct Sizes {
    int64_t left, right, out;
};

inline Sizes sizes_of(const ConvShape& s, Direction direction) {
    if (direction == Direction::forward) return {images_of(s), weights_of(s), outputs_of(s)};
    if (direction == Direction::backward_input) return {outputs_of(s), weights_of(s), images_of(s)};
    return {outputs_of(s), images_of(s), weights_of(s)};
}

using Random = std::mt19937_64;

inline int64_t draw(Random& random, int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random);
}

constexpr int64_t kKinds = 10;  // of shapes: 0 to 3 have 3x3 filters, up to 5 no stride, 8 groups, 9 one channel a group

// A shape of a kind with at least one output; small filters and strides are frequent, as in networks.
inline ConvShape draw_shape(Random& random, int64_t kind, int64_t most_side = 30) {
    for (;;) {
        ConvShape s{};
        s.batch = draw(random, 1, 3);
        s.height = draw(random, 1, most_side), s.width = draw(random, 1, most_side);
        s.kernel_h = kind < 4 ? 3 : draw(random, 1, 8), s.kernel_w = kind < 4 ? 3 : draw(random, 1, 8);
        s.groups = kind == 9 ? draw(random, 2, 40) : kind == 8 ? draw(random, 2, 3) : 1;
        const bool depthwise = kind == 9;
        s.channels = s.groups * (depthwise ? 1 : draw(random, 1, 40));
        s.filters = s.groups * (depthwise ? (draw(random, 0, 3) ? 1 : 2) : draw(random, 1, 70));
        const bool plain = kind < 6;
        s.stride_h = plain ? 1 : draw(random, 1, 3), s.stride_w = plain ? 1 : draw(random, 1, 3);
        s.dilation_h = plain ? 1 : draw(random, 1, 3), s.dilation_w = plain ? 1 : draw(random, 1, 3);
        s.padding_h = draw(random, 0, s.kernel_h), s.padding_w = draw(random, 0, s.kernel_w);
        const int64_t rows = s.height + 2 * s.padding_h - s.dilation_h * (s.kernel_h - 1);
        const int64_t columns = s.width + 2 * s.padding_w - s.dilation_w * (s.kernel_w - 1);
        if (rows < 1 || columns < 1) continue;
        s.out_h = (rows - 1) / s.stride_h + 1, s.out_w = (columns - 1) / s.stride_w + 1;
        return s;
    }
}

inline std::string text(const ConvShape& s) {
    char line[256];
    std::snprintf(line, sizeof line,
                  "%ldx%ldx%ldx%ld, %ld filters %ldx%ld, stride %ld %ld, padding %ld %ld, dilation %ld %ld, groups %ld",
                  long(s.batch), long(s.channels), long(s.height), long(s.width), long(s.filters), long(s.kernel_h),
                  long(s.kernel_w), long(s.stride_h), long(s.stride_w), long(s.padding_h), long(s.padding_w),
                  long(s.dilation_h), long(s.dilation_w), long(s.groups));
    return line;
}

template <typename T>
struct Filled : Bytes {
    explicit Filled(const std::vector<double>& values, size_t alignment = 64)
        : Bytes(static_cast<int64_t>(values.size() * sizeof(T)), alignment) {
        for (size_t i = 0; i < values.size(); ++i) static_cast<T*>(get())[i] = static_cast<T>(values[i]);
    }
};

}  // namespace engine
