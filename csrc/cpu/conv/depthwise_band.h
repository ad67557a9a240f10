// A band: some rows of an image and one vector of its channels, copied together into the workspace with zero columns
// around, so that the kernels need no edges, read aligned neighbours and stay in the cache.
#pragma once

#include "depthwise_axis.h"

namespace engine::ENGINE_ISA {
namespace {

// The rows of the input that outputs `rows` read, as far as there are such.
inline Range band_rows(const Axis& axis, Range rows) {
    const int64_t first = axis.in_first + rows.first * axis.in_step;
    const int64_t last = first + reach(axis, rows.last - rows.first);
    const int64_t clipped = smaller(axis.inputs, larger(0, first));
    return {clipped, larger(clipped, smaller(axis.inputs, last))};
}

// Beyond this many bytes of images, gradients or outputs a call asks for memory ahead of its use; below, they are
// likely to be in a cache already. (Neighbours in a column lie so far apart that the processor does not foresee them.)
constexpr int64_t kPrefetchBytes = 8 * 1024 * 1024;

// Rows of pixels in memory, from the first of `lanes` channels on.
template <typename T>
struct Pixels {
    const T* data;
    int64_t height, width, channels, lanes;
    bool prefetch;
};

// band[rows][band_width][lanes] = the columns from `first_column` on, which may begin before the image and end behind
// it. Asks for as many rows after these, which are expected to be read next.
template <typename T>
inline void copy_band(const Pixels<T>& image, Range rows, int64_t first_column, int64_t band_width, T* band) {
    const int64_t begin = smaller(band_width, larger(0, -first_column));
    const int64_t end = larger(begin, smaller(band_width, image.width - first_column));
    const int64_t ahead = (rows.last - rows.first) * image.width * image.channels;
    for (int64_t row = rows.first; row < rows.last; ++row, band += band_width * kLanes<T>) {
        for (int64_t q = 0; q < begin; ++q) store(band + q * kLanes<T>, Vector<T>{});
        int64_t from = (row * image.width + first_column + begin) * image.channels;
        if (image.lanes < kLanes<T>)
            for (int64_t q = begin; q < end; ++q, from += image.channels)
                store(band + q * kLanes<T>, load_some(image.data + from, image.lanes));
        else if (image.prefetch && row + rows.last - rows.first < image.height)
            for (int64_t q = begin; q < end; ++q, from += image.channels) {
                __builtin_prefetch(image.data + from + ahead);
                store(band + q * kLanes<T>, load(image.data + from));
            }
        else
            for (int64_t q = begin; q < end; ++q, from += image.channels)
                store(band + q * kLanes<T>, load(image.data + from));
        for (int64_t q = end; q < band_width; ++q) store(band + q * kLanes<T>, Vector<T>{});
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
