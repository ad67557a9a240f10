// The rows that a convolution multiplies with its filters, which lie nowhere in memory: for each output pixel what the
// kernel covers, one after the other, and the border where that lies outside. A thread fetches four words at a time.
#pragma once

#include "../../binary.h"
#include "../divider.h"
#include "warp_product.h"

namespace engine {
namespace cuda {
namespace {

// The same convolution; where the kernel is as large as the image, as in a linear layer, that of one pixel with all of
// the image's channels, whose rows are read as they lie.
inline BinaryConvolution merged(const BinaryConvolution& shape, bool bytes) {
    if (shape.kernel_h != shape.height || shape.kernel_w != shape.width || shape.padding_h || shape.padding_w)
        return shape;
    BinaryConvolution one = shape;
    one.channels = shape.height * shape.width * (bytes ? shape.channels : (shape.channels + 31) / 32 * 32);
    one.height = one.width = one.kernel_h = one.kernel_w = 1;
    return one;
}

template <typename Kind>
struct BinaryPatches {
    using Element = typename Kind::Element;
    static constexpr int kInQuad = 4 * Kind::kInWord;

    const Element* activations;
    int height, width, depth, kernel_w;  // depth: elements of a pixel
    int rows, length;                    // length: of a row
    int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    Divider by_out_w, by_out_h, by_kernel_w, by_depth;
    Element border, last_border;  // what each element of a pixel beyond the border is, and its last
    bool quads;                   // whether four words of a pixel are loaded at once

    BinaryPatches(const BinaryConvolution& shape, const void* from)
        : activations(static_cast<const Element*>(from)), height(int(shape.height)), width(int(shape.width)),
          depth(int(Kind::kBits ? (shape.channels + 31) / 32 : shape.channels)), kernel_w(int(shape.kernel_w)),
          rows(int(shape.batch * shape.out_h * shape.out_w)), length(int(shape.kernel_h * shape.kernel_w) * depth),
          stride_h(int(shape.stride_h)), stride_w(int(shape.stride_w)), padding_h(int(shape.padding_h)),
          padding_w(int(shape.padding_w)), dilation_h(int(shape.dilation_h)), dilation_w(int(shape.dilation_w)),
          by_out_w(int(shape.out_w)), by_out_h(int(shape.out_h)), by_kernel_w(int(shape.kernel_w)), by_depth(depth),
          border(Element(shape.padding)), last_border(border),
          quads(depth % kInQuad == 0 && reinterpret_cast<uintptr_t>(from) % sizeof(Quad) == 0) {
        if (Kind::kBits && shape.padding) {
            border = last_border = Element(-1);
            if (shape.channels % 32) last_border = Element((1u << shape.channels % 32) - 1);
        }
    }

    // A row: its image, and where the kernel's corner lies in it. No image beyond the last row.
    struct Row {
        const Element* image;
        int y, x;
    };
    __device__ __forceinline__ Row row(int number) const {
        if (number >= rows) return {nullptr, 0, 0};
        const int line = by_out_w.quotient(number), image = by_out_h.quotient(line);
        return {activations + int64_t{image} * height * width * depth,
                by_out_h.rest(line, image) * stride_h - padding_h, by_out_w.rest(number, line) * stride_w - padding_w};
    }

    // An element of a row: the kernel's line and column, and which of the pixel's elements.
    struct Place {
        int line, column, element;
    };
    __device__ __forceinline__ Place place(int k) const {
        const int pixel = by_depth.quotient(k), line = by_kernel_w.quotient(pixel);
        return {line, by_kernel_w.rest(pixel, line), by_depth.rest(k, pixel)};
    }

    // The pixel of a place, or null beyond the border.
    __device__ __forceinline__ const Element* pixel(const Row& row, const Place& place) const {
        const int y = row.y + place.line * dilation_h, x = row.x + place.column * dilation_w;
        if (y < 0 || y >= height || x < 0 || x >= width) return nullptr;
        return row.image + (int64_t{y} * width + x) * depth;
    }
    __device__ __forceinline__ uint32_t border_of(int element) const {
        return element == depth - 1 ? last_border : border;
    }

    // Elements k to k + kInQuad - 1 of a row, zeros beyond its end; k is a multiple of kInQuad.
    __device__ __forceinline__ Quad load(const Row& row, int k) const {
        Quad quad{};
        if (!row.image || k >= length) return quad;
        Place at = place(k);
        return quads ? load_quad(row, at) : load_elements(row, at, length - k);
    }

private:
    __device__ __forceinline__ Quad load_quad(const Row& row, const Place& at) const {
        if (const Element* from = pixel(row, at)) return *reinterpret_cast<const Quad*>(from + at.element);
        Quad quad;
        ENGINE_UNROLL
        for (int word = 0; word < 4; ++word)
            quad.words[word] = Kind::kBits ? border_of(at.element + word) : border * 0x01010101u;
        return quad;
    }

    __device__ __forceinline__ Quad load_elements(const Row& row, Place at, int left) const {
        Quad quad{};
        const Element* from = pixel(row, at);
        ENGINE_UNROLL
        for (int number = 0; number < kInQuad; ++number) {
            if (number >= left) continue;
            const uint32_t value = from ? from[at.element] : border_of(at.element);
            quad.words[number / Kind::kInWord] |= value << (number % Kind::kInWord * 8);
            if (++at.element < depth) continue;
            at.element = 0;
            if (++at.column == kernel_w) {
                at.column = 0;
                ++at.line;
            }
            from = pixel(row, at);
        }
        return quad;
    }
};

}  // namespace
}  // namespace cuda
}  // namespace engine
