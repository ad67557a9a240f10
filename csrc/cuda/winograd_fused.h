// Winograd's F(2x2, 3x3) in one kernel: nothing that is transformed but the filters ever leaves the multiprocessor.
//
// A block of 512 threads computes kTiles tiles of 2x2 outputs for kFilters filters of one group. It goes through the
// channels a chunk at a time; two chunks have room in shared memory, so that while one is multiplied, the next one is
// fetched, and there is one barrier per chunk.
//
//   fetch     a thread loads the 4x4 inputs of one channel of one tile, and copies a part of the transformed filters
//   store     B^T d B in the thread's registers; its 16 values go to the 16 places of the chunk
//   multiply  warp p takes place p: sums[tile][filter] += inputs[p][channel][tile] * filters[p][channel][filter], with
//             8x8 sums per thread (4x4 of doubles) in registers: 4 loads of 16 bytes for 64 multiplications
//   finish    the sums of all places meet in shared memory, in two halves; a thread takes one filter of one tile through
//             A^T s A and writes 2x2 outputs, neighbours writing neighbouring filters
//
// Sizes. All registers of a multiprocessor hold 64 K values, of which the sums take half: 16 places x 32 tiles x 64
// filters. More filters than tiles, because a tile is transformed anew for each block of filters, while a filter is
// only copied. Chunks of 32 bytes are the least that is read from memory at a time.
//
// Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; Yan, Wang and Chu, "Optimizing batched
// Winograd convolution on GPUs", PPoPP 2020; the same layout of work in plain CUDA: Castro et al., "OpenCNN", 2021.
#pragma once

#include "winograd_transform.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kPlaces = 16, kThreads = 32 * kPlaces;
constexpr int kTileSide = 2, kInputSide = 4;

// What is loaded and stored in one go.
template <typename T>
struct alignas(16) Quad {
    static constexpr int count = 16 / sizeof(T);
    T at[count];
};

// The sizes of a block, so many bytes for either type. A warp is 4 rows of lanes, along tiles, by 8 along filters; each
// lane has two quads of either, half a row of its block apart.
template <typename T>
struct FusedBlock {
    static constexpr int kQuad = Quad<T>::count;
    static constexpr int kLaneRows = 4, kLaneColumns = 8;
    static constexpr int kTiles = 2 * kLaneRows * kQuad, kFilters = 2 * kLaneColumns * kQuad;
    static constexpr int kChunk = 32 / sizeof(T);
    static constexpr int kChunkQuads = kPlaces * kChunk * kFilters / kQuad;  // of the transformed filters
};

// A layer as the kernel sees it: the forward direction, or the gradient of the images, which is the convolution of the
// gradient of the output with filters rotated by half a turn, whose channels and filters trade places.
template <typename T>
struct FusedLayer {
    const T* images;
    const T* filters_of_places;  // transformed: [group][block of filters][chunk][place][kChunk][kFilters]
    const T* bias;               // or null
    T* out;                      // with more than one split, as many arrays, to be added up
    int64_t out_elements;
    int height, width, out_h, out_w, padding_h, padding_w;  // padding: negative where it exceeds that of the gradient
    int groups, channels, filters;                          // of one group
    int tiles_h, tiles_w, tiles;                            // tiles: of the whole batch
    int tile_blocks, filter_blocks;
    int chunks, split_chunks;  // of all channels; of one split
};

// Where a tile lies: its image and first output. An image of -1: nowhere.
struct TilePosition {
    int image, row, column;
};

// Tiles are counted along strips of 4 rows of tiles, down the columns, so that those of one block lie together and share
// most of the inputs that they overlap in.
template <typename T>
__device__ __forceinline__ TilePosition tile_position(const FusedLayer<T>& layer, int tile) {
    constexpr int kStrip = 4;
    if (tile >= layer.tiles) return {-1, 0, 0};
    const int of_image = layer.tiles_h * layer.tiles_w, of_strip = kStrip * layer.tiles_w;
    const int image = tile / of_image, place = tile % of_image;
    const int top = place / of_strip * kStrip, in_strip = place % of_strip;
    const int rows = layer.tiles_h - top < kStrip ? layer.tiles_h - top : kStrip;
    return {image, (top + in_strip % rows) * kTileSide, in_strip / rows * kTileSide};
}

// One chunk. Row k of the inputs has its quads permuted: threads that store the same tile for all the channels of a
// chunk then use different banks.
template <typename T>
struct FusedChunk {
    using Block = FusedBlock<T>;
    Quad<T> inputs[kPlaces][Block::kChunk][Block::kTiles / Block::kQuad];
    Quad<T> filters[kPlaces][Block::kChunk][Block::kFilters / Block::kQuad];

    static __device__ __forceinline__ int permuted(int k, int quad) { return quad ^ (4 / Block::kQuad * k); }
};

template <typename T>
struct FusedMemory {
    using Block = FusedBlock<T>;
    union {
        FusedChunk<T> chunks[2];
        Quad<T> sums[kPlaces][Block::kTiles / 2][Block::kFilters / Block::kQuad];  // of half the tiles
    };
    TilePosition tiles[Block::kTiles];
};

// What a block computes.
struct FusedPart {
    int split, group, tile_block, filter_block;

    // Neighbours in time share inputs: they differ in their filters.
    template <typename T>
    __device__ __forceinline__ FusedPart(const FusedLayer<T>& layer, int block) {
        filter_block = block % layer.filter_blocks;
        block /= layer.filter_blocks;
        tile_block = block % layer.tile_blocks;
        block /= layer.tile_blocks;
        group = block % layer.groups;
        split = block / layer.groups;
    }
};

// One thread's share in bringing a chunk to shared memory.
template <typename T>
struct FusedFetch {
    using Block = FusedBlock<T>;
    static constexpr int kQuads = Block::kChunkQuads / kThreads;

    const T* image_values;  // the first input of the thread's tile and channel in chunk 0; not read where outside
    const Quad<T>* filter_quads;
    int line, pixel;  // elements from one row, and column, of inputs to the next
    int channels;     // from the thread's channel of chunk 0 on
    unsigned inside;  // a bit for each input of the tile that lies in the image
    int tile, k;
    T inputs[kInputSide][kInputSide];
    Quad<T> filters[kQuads];

    __device__ __forceinline__ FusedFetch(const FusedLayer<T>& layer, const FusedPart& part, const TilePosition* tiles)
        : line(layer.width * layer.groups * layer.channels), pixel(layer.groups * layer.channels), inside(0) {
        const int thread = threadIdx.x;
        k = thread % Block::kChunk;
        tile = thread / Block::kChunk;
        filter_quads = reinterpret_cast<const Quad<T>*>(layer.filters_of_places) + thread +
                       int64_t(part.group * layer.filter_blocks + part.filter_block) * layer.chunks * Block::kChunkQuads;
        channels = layer.channels - k;
        image_values = layer.images;
        if (tile >= Block::kTiles || tiles[tile].image < 0) return;
        const int top = tiles[tile].row - layer.padding_h, left = tiles[tile].column - layer.padding_w;
        image_values += ((int64_t(tiles[tile].image) * layer.height + top) * layer.width + left) * pixel +
                        part.group * layer.channels + k;
        for (int i = 0; i < kInputSide; ++i)
            for (int j = 0; j < kInputSide; ++j)
                if (top + i >= 0 && top + i < layer.height && left + j >= 0 && left + j < layer.width)
                    inside |= 1u << (i * kInputSide + j);
    }

    __device__ __forceinline__ void load(int chunk) {
        const int first = chunk * Block::kChunk;
        const unsigned mask = first < channels ? inside : 0;
        ENGINE_UNROLL
        for (int i = 0; i < kInputSide; ++i)
            ENGINE_UNROLL
            for (int j = 0; j < kInputSide; ++j)
                inputs[i][j] = mask >> (i * kInputSide + j) & 1 ? __ldg(image_values + first + (i * line + j * pixel)) : T(0);
        ENGINE_UNROLL
        for (int n = 0; n < kQuads; ++n)
            filters[n] = filter_quads[int64_t(chunk) * Block::kChunkQuads + n * kThreads];
    }

    __device__ __forceinline__ void store(FusedChunk<T>& chunk) {
        Quad<T>* const quads = reinterpret_cast<Quad<T>*>(chunk.filters) + threadIdx.x;
        ENGINE_UNROLL
        for (int n = 0; n < kQuads; ++n) quads[n * kThreads] = filters[n];
        if (tile >= Block::kTiles) return;
        transform_input<2, 3>(inputs, inputs);
        const int quad = FusedChunk<T>::permuted(k, tile / Block::kQuad);
        ENGINE_UNROLL
        for (int i = 0; i < kInputSide; ++i)
            ENGINE_UNROLL
            for (int j = 0; j < kInputSide; ++j)
                chunk.inputs[i * kInputSide + j][k][quad].at[tile % Block::kQuad] = inputs[i][j];
    }
};

// One thread's share in the products: of the place of its warp, the tiles of its row and the filters of its column.
template <typename T>
struct FusedSums {
    using Block = FusedBlock<T>;
    static constexpr int kQuad = Block::kQuad;

    int place, row, column;
    T sums[2 * kQuad][2 * kQuad];  // [tile][filter]

    __device__ __forceinline__ FusedSums()
        : place(threadIdx.x / 32),
          row(threadIdx.x % 32 / Block::kLaneColumns),
          column(threadIdx.x % Block::kLaneColumns) {
        ENGINE_UNROLL
        for (int m = 0; m < 2 * kQuad; ++m)
            ENGINE_UNROLL
            for (int n = 0; n < 2 * kQuad; ++n) sums[m][n] = 0;
    }

    __device__ __forceinline__ void multiply(const FusedChunk<T>& chunk) {
        ENGINE_UNROLL
        for (int k = 0; k < Block::kChunk; ++k) {
            Quad<T> inputs[2], filters[2];
            ENGINE_UNROLL
            for (int half = 0; half < 2; ++half) {
                inputs[half] = chunk.inputs[place][k][chunk.permuted(k, half * Block::kLaneRows + row)];
                filters[half] = chunk.filters[place][k][half * Block::kLaneColumns + column];
            }
            ENGINE_UNROLL
            for (int m = 0; m < 2 * kQuad; ++m)
                ENGINE_UNROLL
                for (int n = 0; n < 2 * kQuad; ++n)
                    sums[m][n] += inputs[m / kQuad].at[m % kQuad] * filters[n / kQuad].at[n % kQuad];
        }
    }

    template <int half>
    __device__ __forceinline__ void share(FusedMemory<T>& memory) const {
        ENGINE_UNROLL
        for (int m = 0; m < kQuad; ++m)
            ENGINE_UNROLL
            for (int n = 0; n < 2; ++n) {
                Quad<T> quad;
                ENGINE_UNROLL
                for (int e = 0; e < kQuad; ++e) quad.at[e] = sums[half * kQuad + m][n * kQuad + e];
                memory.sums[place][row * kQuad + m][n * Block::kLaneColumns + column] = quad;
            }
    }
};

// Writes the outputs of half the tiles, whose sums are in shared memory.
template <typename T>
__device__ __forceinline__ void write_outputs(const FusedLayer<T>& layer, const FusedPart& part,
                                              const FusedMemory<T>& memory, int half) {
    using Block = FusedBlock<T>;
    constexpr int kHalf = Block::kTiles / 2;
    const int lane = threadIdx.x % Block::kFilters, filter = part.filter_block * Block::kFilters + lane;
    if (filter >= layer.filters) return;
    const int64_t column_stride = int64_t(layer.groups) * layer.filters;
    const int64_t of_all = int64_t(part.group) * layer.filters + filter;
    const T bias = layer.bias && part.split == 0 ? layer.bias[of_all] : T(0);
    T* const out = layer.out + part.split * layer.out_elements + of_all;
    for (int tile = threadIdx.x / Block::kFilters; tile < kHalf; tile += kThreads / Block::kFilters) {
        const TilePosition at = memory.tiles[half * kHalf + tile];
        if (at.image < 0) continue;
        T sums[kInputSide][kInputSide], results[kTileSide][kTileSide];
        ENGINE_UNROLL
        for (int place = 0; place < kPlaces; ++place)
            sums[place / kInputSide][place % kInputSide] =
                memory.sums[place][tile][lane / Block::kQuad].at[lane % Block::kQuad];
        transform_output<2, 3>(sums, results);
        T* const to = out + ((int64_t(at.image) * layer.out_h + at.row) * layer.out_w + at.column) * column_stride;
        ENGINE_UNROLL
        for (int i = 0; i < kTileSide; ++i)
            ENGINE_UNROLL
            for (int j = 0; j < kTileSide; ++j)
                if (at.row + i < layer.out_h && at.column + j < layer.out_w)
                    to[(i * int64_t(layer.out_w) + j) * column_stride] = results[i][j] + bias;
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) winograd_fused(const FusedLayer<T> layer) {
    using Block = FusedBlock<T>;
    FusedMemory<T>& memory = shared_memory<FusedMemory<T>>();
    const FusedPart part(layer, blockIdx.x);
    if (threadIdx.x < Block::kTiles)
        memory.tiles[threadIdx.x] = tile_position(layer, part.tile_block * Block::kTiles + int(threadIdx.x));
    block_barrier();

    const int first = part.split * layer.split_chunks;
    const int end = first + layer.split_chunks < layer.chunks ? first + layer.split_chunks : layer.chunks;
    FusedFetch<T> fetch(layer, part, memory.tiles);
    FusedSums<T> sums;
    fetch.load(first);
    fetch.store(memory.chunks[0]);
    block_barrier();
    for (int chunk = first, stage = 0; chunk < end; ++chunk, stage ^= 1) {
        const bool more = chunk + 1 < end;
        if (more) fetch.load(chunk + 1);
        sums.multiply(memory.chunks[stage]);
        if (more) fetch.store(memory.chunks[stage ^ 1]);
        block_barrier();
    }
    sums.template share<0>(memory);
    block_barrier();
    write_outputs(layer, part, memory, 0);
    block_barrier();
    sums.template share<1>(memory);
    block_barrier();
    write_outputs(layer, part, memory, 1);
}

}  // namespace
}  // namespace cuda
}  // namespace engine
