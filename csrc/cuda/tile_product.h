// Matrix products whose factors and results need not lie in memory as matrices do: the work of implicit, im2col,
// winograd4 and fft. For each of `batches`,
//
//   out[m][n] = sum over k of left(m, k) * right(n, k)
//
// A block of 256 threads has a tile of the result in registers, up to 128x128. It goes through the depth a chunk of 8 or
// 16 at a time: while one chunk of both factors is multiplied from shared memory, the next one is fetched into registers
// and stored behind it, so there is one barrier per chunk. A thread has up to 8x8 results and reads 16 numbers for 64
// multiplications. Sums run over at most kRun of the depth in registers; then they are added to what is in memory. So
// rounding errors grow with the square root of kRun, and of the number of runs, and not with that of the depth: in
// float32 they stay below 1e-6 up to depths of a million. The cost is a hundredth.
//
// Where results are few and the depth is large, `parts` of the depth are other blocks' work, and add_parts adds them up,
// always in the same order.
//
// A factor says how its numbers are found:
//   along_depth       whether four numbers of one row and neighbouring k lie together, else of four neighbouring rows
//   at(batch)         the factor of one of the batches
//   row(m)            what a thread keeps of a row (of the first of four), that may lie beyond the end
//   load(row, k, v)   four numbers; zero beyond the end of the depth (beyond that of the rows: anything)
// the left one also how deep it is, which may depend on the batch; and a result
//   at(batch, part)   that of one of the batches
//   store(m, n, values, count, more)   writes count numbers from column n on, or adds them to what is there
//
// Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra", SC 2008; Nath, Tomov and Dongarra, "An improved
// MAGMA GEMM for Fermi GPUs", 2010.
#pragma once

#include "convolution.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kRun = portion(512, 32);  // the most that is summed in registers; a multiple of every chunk's depth
constexpr int kProductThreads = 256;

template <typename T>
struct alignas(16) Four {
    T values[4];
};
template <typename T>
__device__ __forceinline__ void load_four(const T* from, T (&values)[4]) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(from);
    ENGINE_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = four.values[i];
}
template <typename T>
__device__ __forceinline__ void store_four(T* to, const T (&values)[4]) {
    Four<T> four;
    ENGINE_UNROLL
    for (int i = 0; i < 4; ++i) four.values[i] = values[i];
    *reinterpret_cast<Four<T>*>(to) = four;
}
template <typename T>
__device__ __forceinline__ void set_zero(T (&values)[4]) {
    ENGINE_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = 0;
}

// Writes `count` of four neighbouring numbers, or adds them to those that are there; `quads`: `to` is aligned for four.
template <typename T>
__device__ __forceinline__ void write(T* to, const T (&values)[4], int count, bool more, bool quads) {
    if (quads && count == 4) {
        T sums[4];
        if (more) load_four(to, sums);
        ENGINE_UNROLL
        for (int i = 0; i < 4; ++i) sums[i] = more ? sums[i] + values[i] : values[i];
        return store_four(to, sums);
    }
    ENGINE_UNROLL
    for (int i = 0; i < 4; ++i)
        if (i < count) to[i] = more ? to[i] + values[i] : values[i];
}

// The most of any size of a product: numbers of rows, columns and depth, those of tiles beyond the end too, have 32 bits.
constexpr int64_t kMostExtent = INT32_MAX - 1024;

// The sizes of a product. Parts: of the depth, a multiple of kRun each; the last one may have less, or nothing.
struct Extent {
    int64_t rows, columns, depth, batches;
    int64_t parts = 1, part_depth = 0;  // with one part it has all
};

// The extent with a depth cut into parts, where that gives work to a GPU that would have too little, but not more parts
// than `most` nor such as are shorter than kRun. Depends on the sizes alone.
inline Extent cut_depth(Extent extent, int64_t most) {
    constexpr int64_t kSquare = 64, kManySquares = 528;  // four for each multiprocessor of an H100
    const int64_t squares = divide_up(extent.rows, kSquare) * divide_up(extent.columns, kSquare) * extent.batches;
    const int64_t runs = divide_up(extent.depth, kRun);
    int64_t parts = kManySquares / squares;
    if (parts > most) parts = most;
    if (parts > runs) parts = runs;
    if (parts <= 1) return extent;
    extent.part_depth = divide_up(runs, parts) * kRun;
    extent.parts = divide_up(extent.depth, extent.part_depth);
    return extent;
}

// A factor that lies in memory as a matrix, rows x depth, or with `along` false depth x rows; `stride` elements from
// line to line.
template <typename T, bool along>
struct Matrix {
    static constexpr bool along_depth = along;
    const T* data;
    int64_t rows, depth, stride, batch_stride;

    using Row = int;
    __device__ Matrix at(int64_t batch) const {
        return {data + batch * batch_stride, rows, depth, stride, batch_stride};
    }
    __device__ Row row(int m) const { return m; }
    __device__ void load(Row m, int k, T (&values)[4]) const {
        // With lines and matrices at multiples of four, what is beyond a row's end belongs to its line still.
        const bool quads = (stride | batch_stride) % 4 == 0;
        if (m >= rows || k >= depth) return set_zero(values);
        const T* const from = along ? data + int64_t{m} * stride + k : data + int64_t{k} * stride + m;
        const int64_t left = along ? depth - k : rows - m;
        if (quads && (!along || left >= 4)) return load_four(from, values);
        ENGINE_UNROLL
        for (int i = 0; i < 4; ++i) values[i] = i < left ? from[i] : T(0);
    }
};

// A result that lies in memory as a matrix; parts are `part_stride` apart.
template <typename T>
struct MatrixOut {
    T* data;
    int64_t stride, batch_stride, part_stride = 0;
    bool added = false;  // to what is there before the call

    __device__ MatrixOut at(int64_t batch, int64_t part) const {
        return {data + batch * batch_stride + part * part_stride, stride, batch_stride, part_stride, added};
    }
    __device__ void store(int m, int n, const T (&values)[4], int count, bool more) const {
        write(data + int64_t{m} * stride + n, values, count, more || added, (stride | batch_stride | part_stride) % 4 == 0);
    }
};

// The tile of a block, in squares of 64x64; a thread has 4x4 of each.
template <typename Element, int down, int across>
struct ProductTile {
    using T = Element;
    static constexpr int squares_down = down, squares_across = across;
    static constexpr int rows = 64 * down, columns = 64 * across;
    // Of a chunk: so much that all threads fetch, but of the largest tiles, whose sums leave few registers, not twice.
    static constexpr int depth = down * across == 4 ? 8 : 16;
    static constexpr int at_once = down * across == 1 && sizeof(T) == 4 ? 3 : 2;  // blocks with room on a multiprocessor

    // Lines begin four elements later than they need to: what the threads of a half-warp store along the depth then lies
    // in different banks.
    struct Chunk {
        T left[depth][rows + 4], right[depth][columns + 4];
    };
    struct Memory {
        Chunk chunks[2];
    };
};

// One factor on its way from memory to a chunk. A thread takes four numbers at a time, all in one row (or four rows).
template <typename Factor, typename T, int width, int depth>
struct FactorFetch {
    static constexpr int count = width * depth / (4 * kProductThreads);
    Factor factor;
    typename Factor::Row row;
    int thread;
    T values[count][4];

    // Four numbers of the i-th load: their row, or the first of their rows, and their k, or the first of them. Along the
    // depth half-warps read 32 bytes of each of 16 rows: all that memory delivers at a time, and the banks' number.
    __device__ __forceinline__ int row_of() const {
        return Factor::along_depth ? thread % 16 + thread / 32 % (width / 16) * 16 : thread % (width / 4) * 4;
    }
    __device__ __forceinline__ int depth_of(int i) const {
        const int load = i * kProductThreads + thread;
        return Factor::along_depth ? (load / 16 % 2 + load / (2 * width) * 2) * 4 : load / (width / 4);
    }

    __device__ __forceinline__ FactorFetch(const Factor& factor, int first_row)
        : factor(factor), thread(int(threadIdx.x)) {
        row = this->factor.row(first_row + row_of());
    }
    __device__ __forceinline__ void load(int k) {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) factor.load(row, k + depth_of(i), values[i]);
    }
    __device__ __forceinline__ void store(T (&to)[depth][width + 4]) const {
        ENGINE_UNROLL
        for (int i = 0; i < count; ++i) {
            if (!Factor::along_depth) {
                store_four(&to[depth_of(i)][row_of()], values[i]);
            } else {
                ENGINE_UNROLL
                for (int e = 0; e < 4; ++e) to[depth_of(i) + e][row_of()] = values[i][e];
            }
        }
    }
};

// A result from a tile's corner on.
template <typename Out>
struct OutFrom {
    Out out;
    int row, column;

    template <typename T>
    __device__ void store(int m, int n, const T (&values)[4], int count, bool more) const {
        out.store(row + m, column + n, values, count, more);
    }
};

// The results of one thread: in each square 4 rows from y on, 4 columns from x on. A warp has 4 x 8 threads, which read
// 64 bytes of the left chunk and 128 of the right one at a time, and write lines of 128 bytes.
template <typename Tile>
struct TileSums {
    using T = typename Tile::T;
    static constexpr int down = Tile::squares_down, across = Tile::squares_across;
    int y, x;
    T sums[4 * down][4 * across];

    __device__ __forceinline__ TileSums()
        : y((int(threadIdx.x) / 64 * 4 + int(threadIdx.x) % 32 / 8) * 4),
          x((int(threadIdx.x) / 32 % 2 * 8 + int(threadIdx.x) % 8) * 4) {
        clear();
    }
    __device__ __forceinline__ void clear() {
        ENGINE_UNROLL
        for (int i = 0; i < 4 * down; ++i)
            ENGINE_UNROLL
            for (int j = 0; j < 4 * across; ++j) sums[i][j] = 0;
    }
    __device__ __forceinline__ void multiply(const typename Tile::Chunk& chunk) {
        ENGINE_UNROLL
        for (int k = 0; k < Tile::depth; ++k) {
            T left[down][4], right[across][4];
            ENGINE_UNROLL
            for (int i = 0; i < down; ++i) load_four(&chunk.left[k][64 * i + y], left[i]);
            ENGINE_UNROLL
            for (int j = 0; j < across; ++j) load_four(&chunk.right[k][64 * j + x], right[j]);
            ENGINE_UNROLL
            for (int i = 0; i < 4 * down; ++i)
                ENGINE_UNROLL
                for (int j = 0; j < 4 * across; ++j) sums[i][j] += left[i / 4][i % 4] * right[j / 4][j % 4];
        }
    }
    template <typename Out>
    __device__ __forceinline__ void store(const Out& out, int rows, int columns, bool more) const {
        ENGINE_UNROLL
        for (int i = 0; i < 4 * down; ++i) {
            const int m = i / 4 * 64 + y + i % 4;
            if (m >= rows) continue;
            ENGINE_UNROLL
            for (int j = 0; j < across; ++j) {
                const int n = j * 64 + x, left = columns - n;
                if (left <= 0) continue;
                T values[4];
                ENGINE_UNROLL
                for (int e = 0; e < 4; ++e) values[e] = sums[i][4 * j + e];
                out.store(m, n, values, left < 4 ? left : 4, more);
            }
        }
    }
};

template <typename Tile, typename Left, typename Right, typename Out>
__global__ void __launch_bounds__(kProductThreads, Tile::at_once)
    multiply_tiles(Extent extent, unsigned tiles_down, unsigned tiles_across, Left left, Right right, Out out) {
    using T = typename Tile::T;
    constexpr int depth = Tile::depth;
    typename Tile::Memory& memory = shared_memory<typename Tile::Memory>();
    const unsigned line = blockIdx.x / tiles_across, product = line / tiles_down;
    const int first_column = int(blockIdx.x - line * tiles_across) * Tile::columns;
    const int first_row = int(line - product * tiles_down) * Tile::rows;
    const unsigned batch = product / unsigned(extent.parts), part = product - batch * unsigned(extent.parts);
    left = left.at(batch);
    const int begin = int(part * extent.part_depth), whole = int(left.depth);
    const bool cut = part + 1 < extent.parts && begin + extent.part_depth < whole;
    const int end = cut ? begin + int(extent.part_depth) : whole;

    FactorFetch<Left, T, Tile::rows, depth> rows(left, first_row);
    FactorFetch<Right, T, Tile::columns, depth> columns(right.at(batch), first_column);
    TileSums<Tile> sums;
    const auto store = [&](bool more) {
        const int rows_left = int(extent.rows) - first_row, columns_left = int(extent.columns) - first_column;
        sums.store(OutFrom<Out>{out.at(batch, part), first_row, first_column}, rows_left, columns_left, more);
    };
    rows.load(begin);
    columns.load(begin);
    rows.store(memory.chunks[0].left);
    columns.store(memory.chunks[0].right);
    block_barrier();
    int stage = 0;
    bool more = false;
    for (int k = begin; k < end; k += depth, stage ^= 1) {
        const bool last = k + depth >= end;
        if (!last) rows.load(k + depth), columns.load(k + depth);
        sums.multiply(memory.chunks[stage]);
        if (!last) rows.store(memory.chunks[stage ^ 1].left), columns.store(memory.chunks[stage ^ 1].right);
        block_barrier();
        if (last || (k + depth - begin) % kRun != 0) continue;
        store(more);
        sums.clear();
        more = true;
    }
    store(more);  // zeros, where there is no depth
}

template <typename Tile, typename Left, typename Right, typename Out>
cudaError_t launch_product(const Extent& extent, const Left& left, const Right& right, const Out& out,
                           cudaStream_t stream) {
    const int64_t down = divide_up(extent.rows, Tile::rows), across = divide_up(extent.columns, Tile::columns);
    const int64_t blocks = down * across * extent.batches * extent.parts;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    return launch(multiply_tiles<Tile, Left, Right, Out>, dim3(unsigned(blocks)), dim3(kProductThreads),
                  sizeof(typename Tile::Memory), stream, extent, unsigned(down), unsigned(across), left, right, out);
}

// How long a product takes with tiles of a size, in no unit. Larger tiles multiply more for each number they read; with
// smaller ones less is computed beyond the ends, and more blocks share the work of a small product. `at_once`: blocks
// that have room on a multiprocessor; `rate`: of their multiplications.
inline double product_cost(const Extent& extent, int rows, int columns, int at_once, double rate) {
    constexpr int64_t kMultiprocessors = 132;  // of an H100 or H200
    const int64_t tiles = divide_up(extent.rows, rows) * divide_up(extent.columns, columns);
    const int64_t waves = divide_up(tiles * extent.batches * extent.parts, kMultiprocessors * at_once);
    return double(waves * at_once * rows * columns) / rate;
}

// A product in tiles of the cheapest size.
template <typename T, typename Left, typename Right, typename Out>
cudaError_t product(const Extent& extent, const Left& left, const Right& right, const Out& out, cudaStream_t stream) {
    if constexpr (sizeof(T) == sizeof(float)) {  // sums of doubles in larger tiles would not fit into the registers
        const double square = product_cost(extent, 64, 64, 3, 0.6), tall = product_cost(extent, 128, 64, 2, 0.8);
        const double wide = product_cost(extent, 64, 128, 2, 0.8), large = product_cost(extent, 128, 128, 2, 1.0);
        if (large <= square && large <= tall && large <= wide)
            return launch_product<ProductTile<T, 2, 2>>(extent, left, right, out, stream);
        if (tall <= square && tall <= wide)
            return launch_product<ProductTile<T, 2, 1>>(extent, left, right, out, stream);
        if (wide <= square) return launch_product<ProductTile<T, 1, 2>>(extent, left, right, out, stream);
    }
    return launch_product<ProductTile<T, 1, 1>>(extent, left, right, out, stream);
}

// out = parts[0] + parts[1] + ..., each of `elements`.
template <typename T>
__global__ void __launch_bounds__(kProductThreads) add_all_parts(const T* parts, int64_t elements, int64_t count, T* out) {
    const int64_t i = int64_t{blockIdx.x} * kProductThreads + threadIdx.x;
    if (i >= elements) return;
    T sum = parts[i];
    for (int64_t part = 1; part < count; ++part) sum += parts[part * elements + i];
    out[i] = sum;
}

template <typename T>
cudaError_t add_parts(const T* parts, int64_t elements, int64_t count, T* out, cudaStream_t stream) {
    const int64_t blocks = divide_up(elements, kProductThreads);
    return launch(add_all_parts<T>, dim3(unsigned(blocks)), dim3(kProductThreads), 0, stream, parts, elements, count,
                  out);
}

}  // namespace
}  // namespace cuda
}  // namespace engine
