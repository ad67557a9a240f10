// The rows that a convolution multiplies with its filters: for each output pixel what the kernel covers, one after the
// other, and a border where that lies outside.
#pragma once

#include "lanes.h"

namespace engine::ENGINE_ISA {
namespace {

// T: words of bits, or bytes. border: what one pixel beyond the border is, [depth].
template <typename T>
struct Patches {
    const BinaryConvolution& shape;
    const T* activations;
    int64_t depth;   // elements of a pixel
    int64_t length;  // elements of a row, with zeros at its end

    // Writes rows `first` to `last` - 1.
    void gather(int64_t first, int64_t last, const T* border, T* rows) const {
        int64_t x = first % shape.out_w, y = first / shape.out_w % shape.out_h;
        const T* source = activations + first / (shape.out_h * shape.out_w) * shape.height * shape.width * depth;
        for (int64_t row = first; row < last; ++row, rows += length) {
            T* to = rows;
            for (int64_t i = 0; i < shape.kernel_h; ++i, to += shape.kernel_w * depth)
                gather_line(source, y * shape.stride_h - shape.padding_h + i * shape.dilation_h,
                            x * shape.stride_w - shape.padding_w, border, to);
            for (; to < rows + length; ++to) *to = 0;
            if (++x < shape.out_w) continue;
            x = 0;
            if (++y < shape.out_h) continue;
            y = 0;
            source += shape.height * shape.width * depth;
        }
    }

private:
    void gather_line(const T* source, int64_t y, int64_t left, const T* border, T* to) const {
        const bool inside = y >= 0 && y < shape.height;
        const bool whole = inside && left >= 0 && left + (shape.kernel_w - 1) * shape.dilation_w < shape.width;
        const T* line = source + y * shape.width * depth;  // an address only, unless inside
        if (whole && shape.dilation_w == 1) return copy(line + left * depth, shape.kernel_w * depth, to);
        for (int64_t j = 0; j < shape.kernel_w; ++j, to += depth) {
            const int64_t x = left + j * shape.dilation_w;
            copy(inside && x >= 0 && x < shape.width ? line + x * depth : border, depth, to);
        }
    }

    // As memcpy, whose call would take longer than a short copy. The last 16 bytes may be copied twice.
    static ENGINE_INLINE void copy(const T* from, int64_t count, T* to) {
        constexpr int64_t kStep = 16 / static_cast<int64_t>(sizeof(T));
        if (count < kStep) {
            for (int64_t i = 0; i < count; ++i) to[i] = from[i];
            return;
        }
        for (int64_t i = 0; i < count - kStep; i += kStep) std::memcpy(to + i, from + i, 16);
        std::memcpy(to + count - kStep, from + count - kStep, 16);
    }
};

// Makes of each two words u, v of a row u and u xor v.
ENGINE_INLINE void pair_words(uint32_t* words, int64_t count) {
    typedef uint64_t Pairs __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
    int64_t i = 0;
    for (; i + kWords <= count; i += kWords) {
        Pairs& pairs = *reinterpret_cast<Pairs*>(words + i);
        pairs ^= pairs << 32;
    }
    for (; i < count; i += 2) words[i + 1] ^= words[i];
}

}  // namespace
}  // namespace engine::ENGINE_ISA
