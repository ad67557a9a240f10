// What the Winograd algorithms share: what they refuse, tiles and their transforms in memory, and the gradient of the
// weight. For 3x3 filters of stride 1.
//
// The gradient of the weight is a correlation of the images with the gradient of the output: few outputs, 3x3, and
// filters as large as the output. These are cut into tiles of m x m, each of which meets m + 2 pixels of the images
// each way, F(3x3, m x m). The results of all tiles add up, and as the last transform is linear it waits for the sum:
//
//   images[place][group][tile][channel]     = B^T d B    tiles overlap by two pixels
//   gradients[place][group][tile][filter]   = G g G^T
//   sums[place][group][filter][channel]     = gradients^T x images, a matrix product for each place and group
//   weight                                  = A^T sums A
//
// Per 9 m^2 products of the definition that is (m + 2)^2. Lavin and Gray, "Fast algorithms for convolutional neural
// networks", CVPR 2016, section 4; Winograd, "Arithmetic complexity of computations", SIAM 1980.
//
// Transforms move memory, products compute. A thread transforms one channel of one tile, and the threads of a warp take
// neighbouring channels, so that it reads and writes whole 128 bytes at a time. The 36 (or 16) values of a thread wait
// in registers, and as many loads are under way at once: vectors of channels would need as many times the registers, to
// hide no more latency. Tiles are taken a portion at a time, which depends on the shape alone: what one step writes the
// next one finds in the second-level cache, and the workspace stays bounded.
#pragma once

#include <algorithm>

#include "convolution.h"
#include "tile_product.h"
#include "winograd_transform.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kTransformThreads = 128;
// Bytes of transformed tiles and sums, meant to stay in the second-level cache: 40 MiB on an A100, 50 on an H100.
constexpr int64_t kCached = portion(int64_t{32} << 20, 40000);
// With many channels even few tiles take more. Fewer than kManyTiles would leave multiprocessors without work in the
// matrix products, and read the transformed filters from memory for each few: so many are taken up to kMostBytes.
constexpr int64_t kManyTiles = portion(512, 4), kFewTiles = portion(32, 2), kMostBytes = int64_t{256} << 20;
// For the gradient of the weight: squares of sums are one block's work in the matrix product; so many make about four
// blocks for each multiprocessor of an H100; and so many tiles at least are worth sums of their own.
constexpr int64_t kSquare = 64, kManySquares = 512, kFewestSummed = portion(64, 2);

// How many of `tiles` are transformed at a time, in portions of about the same size, which take `wanted` bytes.
inline int64_t tiles_at_a_time(int64_t tiles, int64_t bytes_of_one, int64_t wanted) {
    const int64_t many = std::max(kFewTiles, std::min(kManyTiles, kMostBytes / bytes_of_one));
    const int64_t most = std::max(many, wanted / bytes_of_one);
    return divide_up(tiles, divide_up(tiles, most));
}

// Matrices of transformed values, one for each place and group. Rows are tiles or filters, columns the channels of a
// group; rows begin at multiples of four elements, for who reads vectors.
struct Layout {
    int64_t groups, rows, columns;

    __host__ __device__ int64_t stride() const { return (columns + 3) / 4 * 4; }
    __host__ __device__ int64_t matrix() const { return rows * stride(); }
    __host__ __device__ int64_t place() const { return groups * matrix(); }
    // Of the first place, in the matrix of a group; channels are counted through all groups.
    __device__ int64_t at(int64_t row, int64_t channel) const {
        const int64_t group = channel / columns;
        return (group * rows + row) * stride() + channel - group * columns;
    }
};

// A batch of pictures, NHWC, that is cut into tiles `step` pixels apart; the first one of each picture begins at the
// pixel (top, left), which lies outside where there is padding.
struct Pictures {
    int64_t channels;
    int height, width, top, left, step;
    int64_t tiles_h, tiles_w;

    struct Corner {
        int64_t picture;
        int y, x;
    };
    __device__ Corner corner(int64_t tile) const {
        const int64_t line = tile / tiles_w, column = tile - line * tiles_w;
        const int64_t picture = line / tiles_h, row = line - picture * tiles_h;
        return {picture, int(row) * step + top, int(column) * step + left};
    }
    __device__ int64_t pixel(const Corner& at, int64_t channel) const {
        return ((at.picture * height + at.y) * width + at.x) * channels + channel;
    }
};

inline dim3 blocks_for(int64_t threads) { return dim3(unsigned(divide_up(threads, kTransformThreads))); }

// Transforms `count` tiles from `first` on by `Line` along both axes, into the rows of `out`; rows beyond are zero.
template <typename Line, typename T>
__global__ void __launch_bounds__(kTransformThreads)
    transform_tiles(const T* pictures, Pictures layer, int64_t first, int64_t count, T* out, Layout layout) {
    const int64_t index = int64_t{blockIdx.x} * kTransformThreads + threadIdx.x;
    const int64_t row = index / layer.channels, channel = index - row * layer.channels;
    if (row >= layout.rows) return;
    const Pictures::Corner corner = layer.corner(first + row);
    const T* line = pictures + layer.pixel(corner, channel);
    unsigned columns_inside = 0;
    ENGINE_UNROLL
    for (int j = 0; j < Line::from; ++j)
        columns_inside |= unsigned(corner.x + j >= 0 && corner.x + j < layer.width) << j;
    T values[Line::from][Line::from], places[Line::to][Line::to];
    ENGINE_UNROLL
    for (int i = 0; i < Line::from; ++i, line += layer.width * layer.channels) {
        const bool line_inside = row < count && corner.y + i >= 0 && corner.y + i < layer.height;
        const T* pixel = line;
        ENGINE_UNROLL
        for (int j = 0; j < Line::from; ++j, pixel += layer.channels)
            values[i][j] = line_inside && (columns_inside >> j & 1) ? __ldg(pixel) : T(0);
    }
    transform_both<Line>(values, places);
    T* to = out + layout.at(row, channel);
    ENGINE_UNROLL
    for (int i = 0; i < Line::to; ++i)
        ENGINE_UNROLL
        for (int j = 0; j < Line::to; ++j, to += layout.place()) *to = places[i][j];
}

template <typename Line, typename T>
cudaError_t launch_transform_tiles(const T* pictures, const Pictures& layer, int64_t first, int64_t count, T* out,
                                   const Layout& layout, cudaStream_t stream) {
    return launch(transform_tiles<Line, T>, blocks_for(layout.rows * layer.channels), kTransformThreads, 0, stream,
                  pictures, layer, first, count, out, layout);
}

inline const char* winograd_refuses(const ConvShape& s, Direction) {
    if (s.kernel_h != 3 || s.kernel_w != 3) return "the filter is not 3x3";
    if (s.stride_h != 1 || s.stride_w != 1) return "the stride is not 1";
    if (s.dilation_h != 1 || s.dilation_w != 1) return "the dilation is not 1";
    return nullptr;
}

// How the gradient of a weight is cut. The tiles of a portion are summed in `parts`, each with sums of its own: where a
// weight is small, one matrix for each place and group would leave most multiprocessors without work.
template <int tile>
struct WeightPlan {
    static constexpr int64_t places = (tile + 2) * (tile + 2);

    int64_t tiles, parts, depth;  // depth: tiles of one part
    Pictures images, gradients;
    Layout image_tiles, gradient_tiles, sums;

    WeightPlan(const ConvShape& s, int size) {
        const int64_t down = divide_up(s.out_h, tile), across = divide_up(s.out_w, tile);
        images = {s.channels, int(s.height), int(s.width), int(-s.padding_h), int(-s.padding_w), tile, down, across};
        gradients = {s.filters, int(s.out_h), int(s.out_w), 0, 0, tile, down, across};
        image_tiles = {s.groups, 1, s.channels / s.groups};
        gradient_tiles = {s.groups, 1, s.filters / s.groups};
        sums = {s.groups, s.filters / s.groups, s.channels / s.groups};
        tiles = s.batch * down * across;

        // Sums that are read and written again for each portion should be much smaller than what it adds to them.
        const int64_t wanted = std::max(kCached, std::min(kMostBytes, 4 * places * sums.place() * size));
        const int64_t bytes = places * (image_tiles.place() + gradient_tiles.place()) * size;
        const int64_t portion = tiles_at_a_time(tiles, bytes, wanted);
        const int64_t squares = divide_up(sums.rows, kSquare) * divide_up(sums.columns, kSquare);
        const int64_t most_parts = std::max<int64_t>(1, portion / kFewestSummed);
        const int64_t many_parts = divide_up(kManySquares, places * s.groups * squares);
        depth = divide_up(portion, std::min(most_parts, many_parts));
        parts = divide_up(portion, depth);
        image_tiles.rows = gradient_tiles.rows = parts * depth;
        sums.groups = s.groups * parts;
    }
};

// Adds up the parts, in their order, and transforms the sums to the weight, [filters][3][3][columns]. A thread takes a
// channel and one column of places; then three of them one row of results each.
template <int tile, typename T>
__global__ void __launch_bounds__(32 * (tile + 2))
    transform_to_weight(const T* sums, Layout layout, int64_t parts, T* out) {
    struct Halves {
        T at[3][tile + 2][32];
    };
    Halves& halves = shared_memory<Halves>();
    const int lane = threadIdx.x, y = threadIdx.y;
    const int64_t index = int64_t{blockIdx.x} * 32 + lane;
    const int64_t filter = index / layout.columns, channel = index - filter * layout.columns;
    const int64_t group = filter / layout.rows;
    const bool exists = group * parts < layout.groups;
    if (exists) {
        T column[tile + 2] = {}, half[3];
        const T* from = sums + y * layout.place() + group * parts * layout.matrix() +
                        (filter - group * layout.rows) * layout.stride() + channel;
        for (int64_t part = 0; part < parts; ++part, from += layout.matrix())
            ENGINE_UNROLL
            for (int i = 0; i < tile + 2; ++i) column[i] += __ldg(from + i * (tile + 2) * layout.place());
        OutputLine<3, tile>::apply(column, half);
        ENGINE_UNROLL
        for (int i = 0; i < 3; ++i) halves.at[i][y][lane] = half[i];
    }
    block_barrier();
    if (!exists || y >= 3) return;
    T row[tile + 2], results[3];
    ENGINE_UNROLL
    for (int j = 0; j < tile + 2; ++j) row[j] = halves.at[y][j][lane];
    OutputLine<3, tile>::apply(row, results);
    ENGINE_UNROLL
    for (int j = 0; j < 3; ++j) out[(filter * 9 + y * 3 + j) * layout.columns + channel] = results[j];
}

// Bytes of workspace of winograd_weight, for elements of `size` bytes.
template <int tile>
int64_t winograd_weight_workspace(const ConvShape& shape, int size) {
    const WeightPlan<tile> plan(shape, size);
    return plan.places * (plan.image_tiles.place() + plan.gradient_tiles.place() + plan.sums.place()) * size;
}

// The gradient of a weight, F(3x3, tile x tile); tile is 2 or 4. For shapes that winograd_refuses lets pass.
template <int tile, typename T>
cudaError_t winograd_weight(const CudaCall& call) {
    const WeightPlan<tile> plan(call.shape, sizeof(T));
    const Layout &images = plan.image_tiles, &gradients = plan.gradient_tiles, &results = plan.sums;
    T* const image_tiles = static_cast<T*>(call.workspace);
    T* const gradient_tiles = image_tiles + plan.places * images.place();
    T* const sums = gradient_tiles + plan.places * gradients.place();
    const Extent extent = {results.rows, results.columns, plan.depth, plan.places * results.groups};
    const Matrix<T, false> left{gradient_tiles, results.rows, plan.depth, gradients.stride(),
                                plan.depth * gradients.stride()};
    const Matrix<T, false> right{image_tiles, results.columns, plan.depth, images.stride(),
                                 plan.depth * images.stride()};
    for (int64_t first = 0; first < plan.tiles; first += images.rows) {
        const int64_t count = std::min(images.rows, plan.tiles - first);
        const MatrixOut<T> out{sums, results.stride(), results.matrix(), 0, first > 0};
        if (const cudaError_t error = launch_transform_tiles<FilterLine<3, tile>>(
                static_cast<const T*>(call.left), plan.gradients, first, count, gradient_tiles, gradients, call.stream))
            return error;
        if (const cudaError_t error = launch_transform_tiles<InputLine<tile, 3>>(
                static_cast<const T*>(call.right), plan.images, first, count, image_tiles, images, call.stream))
            return error;
        if (const cudaError_t error = product<T>(extent, left, right, out, call.stream)) return error;
    }
    const int64_t weights = call.shape.filters * results.columns;
    return launch(transform_to_weight<tile, T>, dim3(unsigned(divide_up(weights, 32))), dim3(32, tile + 2),
                  sizeof(T) * 3 * (tile + 2) * 32, call.stream, sums, results, plan.parts, static_cast<T*>(call.out));
}

}  // namespace
}  // namespace cuda
}  // namespace engine
