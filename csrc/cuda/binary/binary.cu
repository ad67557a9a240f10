// Networks of one bit on a GPU: which tile a convolution is computed in, and the packing of numbers to bits.
#include "binary.h"

#include "product.h"

namespace engine {
namespace cuda {
namespace {

constexpr int64_t kMostRows = INT32_MAX - 1024;  // numbers of rows, those of tiles beyond the end too, have 32 bits
constexpr int64_t kMostSide = 1 << 30;           // of an image with its border

int64_t divide_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

const char* refuses(const BinaryConvolution& shape, bool bytes) {
    const int64_t depth = bytes ? shape.channels : divide_up(shape.channels, 32);
    if (shape.batch * shape.out_h * shape.out_w > kMostRows) return "the output has too many pixels for a GPU";
    if (shape.height + 2 * shape.padding_h > kMostSide || shape.width + 2 * shape.padding_w > kMostSide ||
        shape.kernel_h * shape.kernel_w * depth > kMostSide)
        return "the image or the kernel is too large for a GPU";
    return nullptr;
}

template <typename Kind, typename Tile>
cudaError_t launch_tiles(const BinaryPatches<Kind>& patches, const CudaBinaryWeights& weights, const BinaryOutput& out,
                         int filters, cudaStream_t stream) {
    const int64_t down = divide_up(patches.rows, Tile::rows), across = divide_up(filters, Tile::filters);
    if (down * across > INT32_MAX) return cudaErrorInvalidConfiguration;
    return launch(multiply_signs<Kind, Tile>, dim3(unsigned(down * across)), dim3(kThreads),
                  sizeof(typename Tile::Memory), stream, patches, weights, out, filters, unsigned(across));
}

// How long a product takes in tiles of a size, in no unit: what all multiprocessors compute, those without work too. A
// row or filter that is fetched counts as 32 results (nobody has measured it).
template <typename Tile>
double tile_cost(int64_t rows, int64_t filters) {
#if defined(ENGINE_SMALL_PORTIONS)
    constexpr int64_t kAtOnce = 1;  // tests choose every tile with few rows and filters
#else
    constexpr int64_t kAtOnce = 132 * 2;  // blocks on an H100 or H200
#endif
    const int64_t tiles = divide_up(rows, Tile::rows) * divide_up(filters, Tile::filters);
    return double(divide_up(tiles, kAtOnce)) * (Tile::rows * Tile::filters + 32 * (Tile::rows + Tile::filters));
}

template <typename Kind>
cudaError_t convolve_as(const BinaryConvolution& shape, const void* activations, const CudaBinaryWeights& weights,
                        const BinaryOutput& out, cudaStream_t stream) {
    using Large = SignTile<4, 4>;
    using Narrow = SignTile<2, 2>;
    using Flat = SignTile<4, 1>;
    const BinaryPatches<Kind> patches(merged(shape, !Kind::kBits), activations);
    const int filters = int(shape.filters);
    const double large = tile_cost<Large>(patches.rows, filters), narrow = tile_cost<Narrow>(patches.rows, filters);
    const double flat = tile_cost<Flat>(patches.rows, filters);
    if (large <= narrow && large <= flat) return launch_tiles<Kind, Large>(patches, weights, out, filters, stream);
    if (narrow <= flat) return launch_tiles<Kind, Narrow>(patches, weights, out, filters, stream);
    return launch_tiles<Kind, Flat>(patches, weights, out, filters, stream);
}

cudaError_t convolve(const BinaryConvolution& shape, bool bytes, const void* activations,
                     const CudaBinaryWeights& weights, const BinaryOutput& out, cudaStream_t stream) {
    return (bytes ? convolve_as<OfBytes> : convolve_as<OfBits>)(shape, activations, weights, out, stream);
}

// What a bit is made of; at(row, column) for columns below `length`.
struct Positive {
    const float* values;
    int64_t length;

    __device__ __forceinline__ bool at(int64_t row, int64_t column) const {
        return values[row * length + column] >= 0;
    }
};
struct Reached {
    const int32_t* sums;
    int64_t length;
    const int32_t* thresholds;
    const uint32_t* inverted;

    __device__ __forceinline__ bool at(int64_t row, int64_t column) const {
        return (sums[row * length + column] >= thresholds[column]) != (inverted[column / 32] >> column % 32 & 1);
    }
};

// A warp makes 32 words, each of the 32 numbers that its lanes read side by side.
template <typename Source>
__global__ void __launch_bounds__(kThreads) pack_bits(Source source, int64_t words, int64_t total, uint32_t* bits) {
    const int lane = int(threadIdx.x) % 32;
    const int64_t first = (int64_t{blockIdx.x} * kWarps + threadIdx.x / 32) * 32;
    int64_t row = first / words, place = first - row * words;
    uint32_t own = 0;
    ENGINE_UNROLL
    for (int number = 0; number < 32; ++number) {
        const int64_t column = place * 32 + lane;
        const uint32_t word = ballot(first + number < total && column < source.length && source.at(row, column));
        if (lane == number) own = word;
        if (++place == words) place = 0, ++row;
    }
    if (first + lane < total) bits[first + lane] = own;
}

template <typename Source>
cudaError_t pack_all(const Source& source, int64_t rows, uint32_t* bits, cudaStream_t stream) {
    const int64_t words = divide_up(source.length, 32), total = rows * words, blocks = divide_up(total, kWarps * 32);
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    if (total == 0) return cudaSuccess;
    return launch(pack_bits<Source>, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, source, words, total, bits);
}

cudaError_t threshold(const int32_t* sums, int64_t rows, int64_t filters, const BinaryOutput& out,
                      cudaStream_t stream) {
    return pack_all(Reached{sums, filters, out.thresholds, out.inverted}, rows, out.bits, stream);
}

cudaError_t pack(const float* values, int64_t rows, int64_t length, uint32_t* bits, cudaStream_t stream) {
    return pack_all(Positive{values, length}, rows, bits, stream);
}

}  // namespace

const CudaBinaryKernels binary = {refuses, convolve, threshold, pack};

}  // namespace cuda
}  // namespace engine
