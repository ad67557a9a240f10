// The product of a convolution's rows with its filters: sums, or bits of them.
//
// A block of eight warps has a tile of the result in registers, up to 128 rows x 128 filters, of which a warp has up to
// 64 x 32. It goes through the rows kRowWords words at a time: while these words of all its rows and filters are
// multiplied from shared memory, the next ones are fetched into registers and stored behind them, so there is one
// barrier for each. A lane takes the words 4t to 4t + 3 of a row, two for each of two instructions, so it reads shared
// memory 16 bytes at a time; eight neighbouring lanes read 128 successive ones, from all banks. For 2 * 4 * 4
// instructions a warp reads 12 times.
//
// A word of bits of the result is 32 filters of a row: exactly what a warp has across.
//
// Li and Su, "Accelerating binarized neural networks via bit-tensor-cores in Turing GPUs", IEEE TPDS 2020.
#pragma once

#include "binary.h"
#include "patches.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kQuads = kRowWords / 4;  // of a row that are multiplied at a time

// across: warps side by side; down: times 16 rows of each warp.
template <int across, int down>
struct SignTile {
    static constexpr int warps_across = across, squares = down;
    static constexpr int rows = kWarps / across * down * 16, filters = across * 32;

    struct Memory {
        Quad left[2][rows][kQuads], right[2][filters][kQuads];
        uint32_t ones[rows];  // set bits of each row
    };
};

// What a thread fetches of a tile's rows or filters: quad thread % kQuads of every 64th.
constexpr int fetches(int lines) { return (lines * kQuads + kThreads - 1) / kThreads; }

__device__ __forceinline__ int line_of(int fetch) { return (fetch * kThreads + int(threadIdx.x)) / kQuads; }

template <typename Kind, typename Tile>
struct RowFetch {
    static constexpr int count = fetches(Tile::rows);
    const BinaryPatches<Kind>& patches;
    typename BinaryPatches<Kind>::Row rows[count];
    Quad quads[count];
    uint32_t ones[count];

    __device__ __forceinline__ RowFetch(const BinaryPatches<Kind>& patches_, int first) : patches(patches_) {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) {
            const bool own = line_of(i) < Tile::rows;
            rows[i] = patches.row(own ? first + line_of(i) : patches.rows);
            ones[i] = 0;
        }
    }
    // Of the chunk that begins with this quad of the rows.
    __device__ __forceinline__ void load(int quad) {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) {
            quads[i] = patches.load(rows[i], (quad + int(threadIdx.x) % kQuads) * BinaryPatches<Kind>::kInQuad);
            if constexpr (Kind::kBits) {
                ENGINE_UNROLL
                for (int word = 0; word < 4; ++word) ones[i] += count_bits(quads[i].words[word]);
            }
        }
    }
    __device__ __forceinline__ void store(Quad (&to)[Tile::rows][kQuads]) const {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i)
            if (line_of(i) < Tile::rows) to[line_of(i)][threadIdx.x % kQuads] = quads[i];
    }
    __device__ __forceinline__ void store_ones(uint32_t (&to)[Tile::rows]) {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) {
            ENGINE_UNROLL
            for (int distance = 1; distance < kQuads; distance *= 2)
                ones[i] += __shfl_xor_sync(0xffffffff, ones[i], distance);
            if (threadIdx.x % kQuads == 0 && line_of(i) < Tile::rows) to[line_of(i)] = ones[i];
        }
    }
};

template <typename Tile>
struct FilterFetch {
    static constexpr int count = fetches(Tile::filters);
    static_assert(Tile::filters * kQuads % kThreads == 0, "every thread fetches");
    const Quad* from[count];
    Quad quads[count];

    // stride: quads of a filter.
    __device__ __forceinline__ FilterFetch(const Quad* weights, int filters, int64_t stride, int first) {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) {
            const int filter = first + line_of(i);
            from[i] = filter < filters ? weights + filter * stride + threadIdx.x % kQuads : nullptr;
        }
    }
    __device__ __forceinline__ void load(int quad) {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) quads[i] = from[i] ? from[i][quad] : Quad{};
    }
    __device__ __forceinline__ void store(Quad (&to)[Tile::filters][kQuads]) const {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) to[line_of(i)][threadIdx.x % kQuads] = quads[i];
    }
};

// What a lane has of the result: sums[i][j] of 16 rows from 16 i on and 8 filters from 8 j on, as warp_product.h says.
template <typename Kind, typename Tile>
struct WarpSums {
    static constexpr int squares = Tile::squares;
    int row, filter, lane;  // where the warp's rows and filters begin in the tile
    uint32_t sums[squares][4][4];

    __device__ __forceinline__ WarpSums()
        : row(int(threadIdx.x) / 32 / Tile::warps_across * squares * 16),
          filter(int(threadIdx.x) / 32 % Tile::warps_across * 32), lane(int(threadIdx.x) % 32) {
        ENGINE_UNROLL
        for (int i = 0; i < squares; ++i)
            ENGINE_UNROLL
            for (int j = 0; j < 4; ++j)
                ENGINE_UNROLL
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
    }

    __device__ __forceinline__ void multiply(const Quad (&left)[Tile::rows][kQuads],
                                             const Quad (&right)[Tile::filters][kQuads]) {
        Quad across[4];
        ENGINE_UNROLL
        for (int j = 0; j < 4; ++j) across[j] = right[filter + 8 * j + lane / 4][lane % 4];
        ENGINE_UNROLL
        for (int i = 0; i < squares; ++i) {
            const Quad upper = left[row + 16 * i + lane / 4][lane % 4];
            const Quad lower = left[row + 16 * i + 8 + lane / 4][lane % 4];
            ENGINE_UNROLL
            for (int half = 0; half < 4; half += 2) {
                const uint32_t a[4] = {upper.words[half], lower.words[half], upper.words[half + 1],
                                       lower.words[half + 1]};
                ENGINE_UNROLL
                for (int j = 0; j < 4; ++j) {
                    const uint32_t b[2] = {across[j].words[half], across[j].words[half + 1]};
                    Kind::multiply(sums[i][j], a, b);
                }
            }
        }
    }

    // Rows and filters of the tile that sums[i][.][e], and sums[.][j][e], belong to.
    __device__ __forceinline__ int row_of(int i, int e) const { return row + 16 * i + e / 2 * 8 + lane / 4; }
    __device__ __forceinline__ int filter_of(int j, int e) const { return filter + 8 * j + lane % 4 * 2 + e % 2; }

    // Makes of the bits that both have the sums of signs.
    __device__ __forceinline__ void finish(const uint32_t (&ones)[Tile::rows], const int32_t* minus_total, int left) {
        ENGINE_UNROLL
        for (int j = 0; j < 4; ++j) {
            uint32_t own[2];
            ENGINE_UNROLL
            for (int e = 0; e < 2; ++e) own[e] = filter_of(j, e) < left ? uint32_t(minus_total[filter_of(j, e)]) : 0;
            ENGINE_UNROLL
            for (int i = 0; i < squares; ++i)
                ENGINE_UNROLL
                for (int e = 0; e < 4; ++e) sums[i][j][e] = own[e % 2] + 4 * sums[i][j][e] - 2 * ones[row_of(i, e)];
        }
    }

    // Writes the sums of the tile's first rows and filters, `to` being the first, `filters` from row to row.
    __device__ __forceinline__ void store(int32_t* to, int rows, int left, int filters) const {
        struct alignas(8) Pair {
            uint32_t first, second;
        };
        ENGINE_UNROLL
        for (int i = 0; i < squares; ++i)
            ENGINE_UNROLL
            for (int e = 0; e < 4; e += 2) {
                if (row_of(i, e) >= rows) continue;
                int32_t* const line = to + int64_t{row_of(i, e)} * filters;
                ENGINE_UNROLL
                for (int j = 0; j < 4; ++j) {
                    const int place = filter_of(j, 0);
                    if (place + 1 < left && filters % 2 == 0) {
                        *reinterpret_cast<Pair*>(line + place) = {sums[i][j][e], sums[i][j][e + 1]};
                    } else {
                        if (place < left) line[place] = int32_t(sums[i][j][e]);
                        if (place + 1 < left) line[place + 1] = int32_t(sums[i][j][e + 1]);
                    }
                }
            }
    }

    // Writes a word of bits for each row. thresholds: those of the tile's first filter; word: the warp's, of `words`.
    __device__ __forceinline__ void store_bits(const BinaryOutput& out, const int32_t* thresholds, int64_t first_row,
                                               int64_t rows, int word, int words) const {
        int32_t least[4][2];
        ENGINE_UNROLL
        for (int j = 0; j < 4; ++j)
            ENGINE_UNROLL
            for (int e = 0; e < 2; ++e) least[j][e] = word < words ? thresholds[filter_of(j, e)] : 0;
        ENGINE_UNROLL
        for (int i = 0; i < squares; ++i)
            ENGINE_UNROLL
            for (int half = 0; half < 4; half += 2) {
                uint32_t bits = 0;
                ENGINE_UNROLL
                for (int j = 0; j < 4; ++j)
                    ENGINE_UNROLL
                    for (int e = 0; e < 2; ++e)
                        bits |= uint32_t{int32_t(sums[i][j][half + e]) >= least[j][e]} << (8 * j + lane % 4 * 2 + e);
                bits |= __shfl_xor_sync(0xffffffff, bits, 1);
                bits |= __shfl_xor_sync(0xffffffff, bits, 2);
                if (lane % 4 == 0 && word < words && row_of(i, half) < rows)
                    out.bits[(first_row + row_of(i, half)) * words + word] = bits ^ out.inverted[word];
            }
    }
};

template <typename Kind, typename Tile>
__global__ void __launch_bounds__(kThreads, 2)
    multiply_signs(BinaryPatches<Kind> patches, CudaBinaryWeights weights, BinaryOutput out, int filters,
                   unsigned tiles_across) {
    typename Tile::Memory& memory = shared_memory<typename Tile::Memory>();
    const int first_row = int(blockIdx.x / tiles_across) * Tile::rows;
    const int first_filter = int(blockIdx.x % tiles_across) * Tile::filters;
    const int chunks = (patches.length + kRowWords * Kind::kInWord - 1) / (kRowWords * Kind::kInWord);

    RowFetch<Kind, Tile> rows(patches, first_row);
    FilterFetch<Tile> columns(static_cast<const Quad*>(weights.rows), filters, int64_t{chunks} * kQuads, first_filter);
    WarpSums<Kind, Tile> sums;
    rows.load(0);
    columns.load(0);
    rows.store(memory.left[0]);
    columns.store(memory.right[0]);
    block_barrier();
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const bool last = chunk + 1 == chunks;
        if (!last) rows.load((chunk + 1) * kQuads), columns.load((chunk + 1) * kQuads);
        sums.multiply(memory.left[chunk % 2], memory.right[chunk % 2]);
        if (last) break;
        rows.store(memory.left[(chunk + 1) % 2]);
        columns.store(memory.right[(chunk + 1) % 2]);
        block_barrier();
    }
    const int left = filters - first_filter, rows_left = patches.rows - first_row;
    if constexpr (Kind::kBits) {
        rows.store_ones(memory.ones);
        block_barrier();
        sums.finish(memory.ones, weights.minus_total + first_filter, left);
    }
    if (out.sums) {
        sums.store(out.sums + int64_t{first_row} * filters + first_filter, rows_left, left, filters);
    } else {
        const int words = (filters + kPanel - 1) / kPanel, word = (first_filter + sums.filter) / kPanel;
        sums.store_bits(out, out.thresholds + first_filter, first_row, rows_left, word, words);
    }
}

}  // namespace
}  // namespace cuda
}  // namespace engine
