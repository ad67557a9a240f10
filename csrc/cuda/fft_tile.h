// Two-dimensional real transforms of square tiles of NHWC arrays, to spectra in memory and back.
//
// A tile of real numbers has a spectrum with the symmetry X(-i, -j) = conj X(i, j), so half of it says all: the columns
// 0 to size / 2, of the first and the last of which the rows 0 to size / 2 suffice. A thread transforms two rows of the
// tile as one, as real and imaginary part, and then one column; what remains of columns 0 and size / 2 after the rows is
// real, and they are one thread's work together.
//
// Lanes are channels: neighbouring threads read and write neighbouring channels of an array and of the spectra, 128
// bytes at a time (64 of tiles of 32, whose shared memory would not suffice otherwise), and no two of them ever meet in
// shared memory. Where the channels are few, the lanes of a block take several tiles.
#pragma once

#include "fft_spectra.h"
#include "fft_transform.h"

namespace engine {
namespace cuda {
namespace {

// Frequencies that are kept of a tile; four of them are real, and are kept as complex numbers like the others.
constexpr int64_t frequencies(int64_t size) { return size * size / 2 + 2; }

// Which frequency column j and row i are: columns 1 to size / 2 - 1, then what is kept of column 0 and size / 2.
template <int size>
__device__ __forceinline__ int64_t frequency(int row, int column) {
    if (column == 0) return (size / 2 - 1) * size + row;
    if (column == size / 2) return (size / 2 - 1) * size + size / 2 + 1 + row;
    return (column - 1) * size + row;
}

// Along one axis: which element of an array lies at which position of a tile.
//
// The array lies on a line of places, of which only every step-th holds an element: so the results of a convolution with
// a stride lie on the line of one without, and the taps of a dilated filter on that of a larger one. `count` places come
// into a tile, for the first tile from place `first` on; at the positions from `start` on, forwards or (round the end of
// the tile) backwards.
struct TileAxis {
    int64_t extent, pitch, step;  // elements, how far apart they are in memory and on the line
    int64_t first, count;
    int64_t tiles, advance;  // places from one tile to the next
    int start;
    bool backwards;

    // From the first element, or -1 where there is none.
    __device__ int64_t offset(int64_t tile, int position, int size) const {
        const int64_t i = ((backwards ? start - position : position - start) + size) % size;
        const int64_t place = first + tile * advance + i;
        if (i >= count || place < 0) return -1;
        const int64_t element = step == 1 ? place : place / step;
        return element < extent && element * step == place ? element * pitch : -1;
    }
};

// An array cut into tiles: pictures, or filters of one tile each, which belong to one group each.
template <typename T>
struct TiledArray {
    T* data;
    int64_t picture_pitch, group_pitch;
    TileAxis rows, columns;
};

// The memory that a block shares, and its shape: lanes x pairs of rows.
template <typename T, int size>
struct TileBlock {
    static constexpr int lanes = (size == 16 ? 128 : 64) / sizeof(T);
    static constexpr int pairs = size / 2;      // of rows; and as many columns
    static constexpr int threads = lanes * pairs;
    static constexpr int most_tiles = lanes / 4;  // as spectra have at least four channels
    // Half a line more than needed: two rows that half-warps write at once then lie in different banks.
    static constexpr int pitch = pairs * lanes + lanes / 2;

    T re[size][pitch], im[size][pitch];
    int64_t rows[most_tiles][size + 1], columns[most_tiles][size + 1];  // offsets of the elements of each tile
    int64_t pictures[most_tiles];
};

// What a thread works on.
struct Lane {
    int64_t row, group, channel;  // in the spectra; the row is that of a tile
    int tile;                     // of those of the block
    bool exists;
};

// All lanes of the grid take all padded channels of all groups of all rows, in this order.
__device__ __forceinline__ Lane lane_of(int lanes, const Spectra& spectra, int64_t count) {
    // Spectra have at most 2^31 elements, so 32 bits suffice.
    const uint32_t begin = blockIdx.x * uint32_t(lanes), index = begin + threadIdx.x;
    const uint32_t padded = uint32_t(spectra.padded()), width = uint32_t(spectra.groups) * padded;
    const uint32_t row = index / width, within = index % width;
    return {row, within / padded, within % padded, int(row - begin / width), row < count};
}

// Writes the tables of the tiles of a block; `first`: the tile of row 0.
template <typename Block, typename T>
__device__ __forceinline__ void find_elements(Block& block, const TiledArray<T>& array, const Spectra& spectra,
                                              int64_t first, int64_t count) {
    constexpr int size = 2 * Block::pairs;
    const int64_t row = int64_t{blockIdx.x} * Block::lanes / (spectra.groups * spectra.padded());
    for (int i = threadIdx.y * Block::lanes + threadIdx.x; i < Block::most_tiles * size; i += Block::threads) {
        const int tile = i / size, position = i % size;
        if (row + tile >= count) break;
        const int64_t line = (first + row + tile) / array.columns.tiles, picture = line / array.rows.tiles;
        block.rows[tile][position] = array.rows.offset(line - picture * array.rows.tiles, position, size);
        block.columns[tile][position] =
            array.columns.offset(first + row + tile - line * array.columns.tiles, position, size);
        if (position == 0) block.pictures[tile] = picture * array.picture_pitch;
    }
    block_barrier();
}

// Transforms rows 2p and 2p + 1 of a lane's tile into shared memory; columns 0 and size / 2 as one.
template <int size, typename T>
__device__ __forceinline__ void transform_rows(TileBlock<T, size>& block, const T* base, const Lane& lane, bool filled) {
    constexpr int half = size / 2, lanes = TileBlock<T, size>::lanes;
    const int row = 2 * threadIdx.y;
    const int64_t row_a = block.rows[lane.tile][row], row_b = block.rows[lane.tile][row + 1];
    const bool has_a = filled && row_a >= 0, has_b = filled && row_b >= 0;
    Complex<T> z[size];
    ENGINE_UNROLL
    for (int j = 0; j < size; ++j) {
        const int64_t column = block.columns[lane.tile][j];
        z[j].re = has_a && column >= 0 ? __ldg(base + row_a + column) : T(0);
        z[j].im = has_b && column >= 0 ? __ldg(base + row_b + column) : T(0);
    }
    transform(z);
    T *re_a = block.re[row] + threadIdx.x, *im_a = block.im[row] + threadIdx.x;
    T *re_b = block.re[row + 1] + threadIdx.x, *im_b = block.im[row + 1] + threadIdx.x;
    re_a[0] = 2 * z[0].re, im_a[0] = 2 * z[half].re;
    re_b[0] = 2 * z[0].im, im_b[0] = 2 * z[half].im;
    ENGINE_UNROLL
    for (int k = 1; k < half; ++k) {
        const Complex<T> a = first_of_two(z[k], z[size - k]), b = second_of_two(z[k], z[size - k]);
        re_a[k * lanes] = a.re, im_a[k * lanes] = a.im;
        re_b[k * lanes] = b.re, im_b[k * lanes] = b.im;
    }
}

// Transforms a column from shared memory into the spectrum at `to`. All is twice too large, which the inverse makes good.
template <int size, typename T>
__device__ __forceinline__ void transform_column(const TileBlock<T, size>& block, T* to, const Spectra& spectra) {
    constexpr int half = size / 2;
    const int column = threadIdx.y, at = column * TileBlock<T, size>::lanes + threadIdx.x;
    const int64_t step = spectra.frequency(), to_imaginary = spectra.padded();
    Complex<T> z[size];
    ENGINE_UNROLL
    for (int i = 0; i < size; ++i) z[i] = {block.re[i][at], block.im[i][at]};
    transform(z);
    if (column > 0) {
        to += frequency<size>(0, column) * step;
        ENGINE_UNROLL
        for (int i = 0; i < size; ++i, to += step) to[0] = z[i].re, to[to_imaginary] = z[i].im;
        return;
    }
    // Both are twice too large already; what taking them apart doubles once more is halved.
    T* last = to + frequency<size>(0, half) * step;
    to += frequency<size>(0, 0) * step;
    ENGINE_UNROLL
    for (int k = 0; k <= half; ++k, to += step, last += step) {
        const Complex<T> partner = z[(size - k) % size], a = first_of_two(z[k], partner), b = second_of_two(z[k], partner);
        to[0] = T(0.5) * a.re, to[to_imaginary] = T(0.5) * a.im;
        last[0] = T(0.5) * b.re, last[to_imaginary] = T(0.5) * b.im;
    }
}

// The spectra of `count` tiles from `first` on, rows 0 to count - 1 of `to`; channels that only fill up become zeros.
template <typename T, int size>
__global__ void __launch_bounds__(TileBlock<T, size>::threads)
    transform_tiles(TiledArray<const T> from, int64_t first, int64_t count, T* to, Spectra spectra) {
    using Block = TileBlock<T, size>;
    Block& block = shared_memory<Block>();
    find_elements(block, from, spectra, first, count);
    const Lane lane = lane_of(Block::lanes, spectra, count);
    if (lane.exists)
        transform_rows<size>(block, from.data + block.pictures[lane.tile] + lane.group * from.group_pitch + lane.channel,
                             lane, lane.channel < spectra.channels);
    block_barrier();
    if (lane.exists)
        transform_column<size>(block, to + lane.group * spectra.matrix() + lane.row * spectra.stride() + lane.channel,
                               spectra);
}

// Transforms a column of the spectrum at `from` back, into shared memory.
template <int size, typename T>
__device__ __forceinline__ void invert_column(TileBlock<T, size>& block, const T* from, const Spectra& spectra) {
    constexpr int half = size / 2;
    const int column = threadIdx.y, at = column * TileBlock<T, size>::lanes + threadIdx.x;
    const int64_t step = spectra.frequency(), to_imaginary = spectra.padded();
    Complex<T> z[size];
    if (column > 0) {
        from += frequency<size>(0, column) * step;
        ENGINE_UNROLL
        for (int i = 0; i < size; ++i, from += step) z[i] = exchanged(Complex<T>{from[0], from[to_imaginary]});
    } else {
        const T* last = from + frequency<size>(0, half) * step;
        from += frequency<size>(0, 0) * step;
        ENGINE_UNROLL
        for (int k = 0; k <= half; ++k, from += step, last += step) {
            const Complex<T> a = {from[0], from[to_imaginary]}, b = {last[0], last[to_imaginary]};
            z[k] = exchanged(joined(a, b));
            if (k > 0 && k < half) z[size - k] = exchanged(joined_partner(a, b));
        }
    }
    transform(z);
    ENGINE_UNROLL
    for (int i = 0; i < size; ++i) block.re[i][at] = z[i].im, block.im[i][at] = z[i].re;
}

// Transforms rows 2p and 2p + 1 of a lane's tile back, and writes what is right and asked for.
template <int size, typename T>
__device__ __forceinline__ void invert_rows(const TileBlock<T, size>& block, T* base, const Lane& lane, T bias) {
    constexpr int half = size / 2, lanes = TileBlock<T, size>::lanes;
    const T scale = T(1.0 / (2 * size * 2 * size));  // both factors of the product are twice too large
    const int row = 2 * threadIdx.y;
    const int64_t row_a = block.rows[lane.tile][row], row_b = block.rows[lane.tile][row + 1];
    if (row_a < 0 && row_b < 0) return;
    const T *re_a = block.re[row] + threadIdx.x, *im_a = block.im[row] + threadIdx.x;
    const T *re_b = block.re[row + 1] + threadIdx.x, *im_b = block.im[row + 1] + threadIdx.x;
    Complex<T> z[size];
    z[0] = exchanged(Complex<T>{re_a[0], re_b[0]});
    z[half] = exchanged(Complex<T>{im_a[0], im_b[0]});
    ENGINE_UNROLL
    for (int k = 1; k < half; ++k) {
        const Complex<T> a = {re_a[k * lanes], im_a[k * lanes]}, b = {re_b[k * lanes], im_b[k * lanes]};
        z[k] = exchanged(joined(a, b));
        z[size - k] = exchanged(joined_partner(a, b));
    }
    transform(z);
    ENGINE_UNROLL
    for (int j = 0; j < size; ++j) {
        const int64_t column = block.columns[lane.tile][j];
        if (column < 0) continue;
        if (row_a >= 0) base[row_a + column] = z[j].im * scale + bias;
        if (row_b >= 0) base[row_b + column] = z[j].re * scale + bias;
    }
}

// The tiles from `first` on of what rows 0 to count - 1 of `from` are the spectra of, products of two of
// transform_tiles; bias: a number for each channel of all groups, or null.
template <typename T, int size>
__global__ void __launch_bounds__(TileBlock<T, size>::threads)
    invert_tiles(const T* from, Spectra spectra, const T* bias, TiledArray<T> to, int64_t first, int64_t count) {
    using Block = TileBlock<T, size>;
    Block& block = shared_memory<Block>();
    find_elements(block, to, spectra, first, count);
    const Lane lane = lane_of(Block::lanes, spectra, count);
    const bool exists = lane.exists && lane.channel < spectra.channels;
    if (exists)
        invert_column<size>(block, from + lane.group * spectra.matrix() + lane.row * spectra.stride() + lane.channel,
                            spectra);
    block_barrier();
    if (!exists) return;
    const T added = bias ? __ldg(bias + lane.group * spectra.channels + lane.channel) : T(0);
    invert_rows<size>(block, to.data + block.pictures[lane.tile] + lane.group * to.group_pitch + lane.channel, lane, added);
}

}  // namespace
}  // namespace cuda
}  // namespace engine
