// Spectra in memory, and how matrix products read them.
//
// At each frequency the spectra of a group's tiles (or filters) are a complex matrix, a row for each tile, a column for
// each channel. It is stored as a real one, in each row first all real parts and then all imaginary parts: so warps that
// take neighbouring channels write and read whole lines, and a complex product is a real one of twice the sizes,
//
//   (a + ib) x (c + id) = | a  b | x |  c  d |
//                                    | -d  c |
//
// whose right factor is not stored but read so: four real products for each complex one. (Gauss needs three, but with
// three results to write and read again where these have two; at 64 channels that costs as much as it saves.)
#pragma once

#include "tile_product.h"

namespace engine {
namespace cuda {
namespace {

// [frequency][group][row][part][channel]; channels are filled up to a multiple of four, with zeros.
struct Spectra {
    int64_t groups, rows, channels;

    __host__ __device__ int64_t padded() const { return (channels + 3) / 4 * 4; }
    __host__ __device__ int64_t stride() const { return 2 * padded(); }        // of rows
    __host__ __device__ int64_t matrix() const { return rows * stride(); }     // of one group
    __host__ __device__ int64_t frequency() const { return groups * matrix(); }
};

template <typename T>
__device__ __forceinline__ void load_signed(const T* from, bool negative, T (&values)[4]) {
    load_four(from, values);
    ENGINE_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = negative ? -values[i] : values[i];
}

// The right factor where the sum goes over the channels of its spectra: rows (part, row), depth (part, channel).
template <typename T>
struct OverChannels {
    const T* data;
    int64_t rows, result_rows, padded, batch_stride;  // result_rows: of each part of the product's columns

    static constexpr bool along_depth = true;
    struct Row {
        const T* data;  // null beyond the end
        bool imaginary;
    };
    __device__ OverChannels at(int64_t batch) const {
        return {data + batch * batch_stride, rows, result_rows, padded, batch_stride};
    }
    __device__ Row row(int n) const {
        const bool imaginary = n >= result_rows;
        const int64_t own = imaginary ? n - result_rows : n;
        return {own < rows ? data + own * 2 * padded : nullptr, imaginary};
    }
    __device__ void load(const Row& row, int k, T (&values)[4]) const {
        if (!row.data || k >= 2 * padded) return set_zero(values);
        const bool by_imaginary = k >= padded;
        // The plane of the other part lies further by as much, or as much before.
        const int64_t moved = !row.imaginary ? k : by_imaginary ? k - padded : k + padded;
        load_signed(row.data + moved, by_imaginary && !row.imaginary, values);
    }
};

// The right factor where the sum goes over the rows of its spectra: rows (part, channel). The depth is (part, row), or
// with `alternating` parts (row, part), as the left factor has it.
template <typename T, bool alternating>
struct OverRows {
    const T* data;
    int64_t rows, part_depth, padded, batch_stride;  // part_depth: of each part of the depth, unless they alternate

    static constexpr bool along_depth = false;
    struct Row {
        int64_t column;  // of the real parts
        bool imaginary, exists;
    };
    __device__ OverRows at(int64_t batch) const {
        return {data + batch * batch_stride, rows, part_depth, padded, batch_stride};
    }
    __device__ Row row(int n) const {
        const bool imaginary = n >= padded;
        return {imaginary ? n - padded : n, imaginary, n < 2 * padded};
    }
    __device__ void load(const Row& row, int k, T (&values)[4]) const {
        const bool by_imaginary = alternating ? k % 2 != 0 : k >= part_depth;
        const int64_t own = alternating ? k / 2 : by_imaginary ? k - part_depth : k;
        if (!row.exists || own >= rows) return set_zero(values);
        const bool other = row.imaginary != by_imaginary;
        load_signed(data + (2 * own + (other ? 1 : 0)) * padded + row.column, by_imaginary && !row.imaginary, values);
    }
};

}  // namespace
}  // namespace cuda
}  // namespace engine
