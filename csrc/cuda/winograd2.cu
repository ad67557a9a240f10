// Winograd's F(2x2, 3x3), 2.25 times fewer multiplications than the definition: one small kernel transforms the filters,
// and one does all the rest (winograd_fused.h). Where the blocks of outputs are too few to keep a GPU busy, the channels
// are split among more of them, and a third kernel adds up what they found, always in the same order. The gradient of
// the weight is not fused (winograd.h).
#include "winograd.h"
#include "winograd_fused.h"

namespace engine {
namespace cuda {
namespace {

// How a direction of a shape is computed. Sizes as in FusedLayer.
template <typename T>
struct Plan {
    using Block = FusedBlock<T>;
    int64_t height, width, out_h, out_w, channels, filters, padding_h, padding_w;
    int64_t tiles_h, tiles_w, tiles, tile_blocks, filter_blocks, chunks, split_chunks, splits, out_elements;
    int64_t groups;
    bool rotated;

    Plan(const ConvShape& s, Direction direction) : groups(s.groups), rotated(direction == Direction::backward_input) {
        height = rotated ? s.out_h : s.height;
        width = rotated ? s.out_w : s.width;
        out_h = rotated ? s.height : s.out_h;
        out_w = rotated ? s.width : s.out_w;
        channels = (rotated ? s.filters : s.channels) / s.groups;
        filters = (rotated ? s.channels : s.filters) / s.groups;
        padding_h = rotated ? s.kernel_h - 1 - s.padding_h : s.padding_h;
        padding_w = rotated ? s.kernel_w - 1 - s.padding_w : s.padding_w;
        tiles_h = divide_up(out_h, kTileSide);
        tiles_w = divide_up(out_w, kTileSide);
        tiles = s.batch * tiles_h * tiles_w;
        tile_blocks = divide_up(tiles, Block::kTiles);
        filter_blocks = divide_up(filters, Block::kFilters);
        chunks = divide_up(channels, Block::kChunk);
        out_elements = s.batch * out_h * out_w * groups * filters;

        // As many blocks as there are multiprocessors in an H100 or H200, each of which has room for one; but with a
        // few chunks each, as a split costs writing and reading the outputs once more.
        constexpr int64_t kMultiprocessors = 132, kFewestChunks = 4;
        const int64_t blocks = tile_blocks * filter_blocks * groups;
        splits = std::max<int64_t>(1, std::min(kMultiprocessors / blocks, chunks / kFewestChunks));
        split_chunks = divide_up(chunks, splits);
        splits = divide_up(chunks, split_chunks);
    }

    int64_t blocks() const { return tile_blocks * filter_blocks * groups * splits; }
    int64_t filter_chunks() const { return groups * filter_blocks * chunks; }
    int64_t filter_bytes() const { return filter_chunks() * Block::kChunkQuads * int64_t(sizeof(Quad<T>)); }
    int64_t split_bytes() const { return splits > 1 ? splits * out_elements * int64_t(sizeof(T)) : 0; }

    // Whether the kernels' 32-bit numbers are large enough.
    bool countable() const {
        constexpr int64_t most = INT32_MAX;
        const int64_t pixel = groups * std::max(channels, filters);
        return pixel <= most / 8 && (width + 1) <= most / 8 / pixel && tiles <= most - Block::kTiles &&
               blocks() <= most && filter_chunks() <= most;
    }

    FusedLayer<T> layer(const CudaCall& call, const T* transformed, T* out) const {
        return {static_cast<const T*>(call.left), transformed, static_cast<const T*>(call.bias), out, out_elements,
                int(height), int(width), int(out_h), int(out_w), int(padding_h), int(padding_w), int(groups),
                int(channels), int(filters), int(tiles_h), int(tiles_w), int(tiles), int(tile_blocks),
                int(filter_blocks), int(chunks), int(split_chunks)};
    }
};

// A chunk of transformed filters. Its rows lie one quad or two further apart than in memory, so that threads that store
// one filter for all the channels of a chunk use different banks.
template <typename T>
struct FilterChunk {
    using Block = FusedBlock<T>;
    Quad<T> places[kPlaces][Block::kChunk][Block::kFilters / Block::kQuad + 4 / Block::kQuad];
};

// Transforms a chunk of channels of a block of filters, one filter of one channel per thread. `rotated`: see FusedLayer.
// What lies beyond the filters and channels is zero.
template <typename T>
__global__ void __launch_bounds__(FusedBlock<T>::kChunk* FusedBlock<T>::kFilters)
    transform_filters(const T* weight, int channels, int filters, int chunks, int filter_blocks, bool rotated, T* out) {
    using Block = FusedBlock<T>;
    FilterChunk<T>& memory = shared_memory<FilterChunk<T>>();
    const int thread = threadIdx.x, chunk = blockIdx.x % chunks, filter_block = blockIdx.x / chunks % filter_blocks;
    const int64_t group = blockIdx.x / chunks / filter_blocks;
    // Neighbours read neighbours in memory: channels, or where these are the filters of the forward direction, filters.
    const int k = rotated ? thread / Block::kFilters : thread % Block::kChunk;
    const int lane = rotated ? thread % Block::kFilters : thread / Block::kChunk;
    const int channel = chunk * Block::kChunk + k, filter = filter_block * Block::kFilters + lane;
    const bool inside = channel < channels && filter < filters;
    const int64_t stride = rotated ? filters : channels;
    const int64_t first = rotated ? (group * channels + channel) * 9 * filters + filter
                                  : (group * filters + filter) * 9 * channels + channel;
    T taps[3][3], places[kInputSide][kInputSide];
    ENGINE_UNROLL
    for (int tap = 0; tap < 9; ++tap)
        taps[tap / 3][tap % 3] = inside ? weight[first + (rotated ? 8 - tap : tap) * stride] : T(0);
    engine::cuda::transform_filter<2, 3>(taps, places);
    ENGINE_UNROLL
    for (int place = 0; place < kPlaces; ++place)
        memory.places[place][k][lane / Block::kQuad].at[lane % Block::kQuad] =
            places[place / kInputSide][place % kInputSide];
    block_barrier();

    constexpr int kRow = Block::kFilters / Block::kQuad;
    Quad<T>* const quads = reinterpret_cast<Quad<T>*>(out) + int64_t(blockIdx.x) * Block::kChunkQuads;
    for (int quad = thread; quad < Block::kChunkQuads; quad += Block::kChunk * Block::kFilters)
        quads[quad] = memory.places[quad / kRow / Block::kChunk][quad / kRow % Block::kChunk][quad % kRow];
}

template <typename T>
cudaError_t transform(const Plan<T>& plan, const T* weight, T* out, cudaStream_t stream) {
    using Block = FusedBlock<T>;
    return launch(transform_filters<T>, dim3(unsigned(plan.filter_chunks())), dim3(Block::kChunk * Block::kFilters),
                  sizeof(FilterChunk<T>), stream, weight, int(plan.channels), int(plan.filters), int(plan.chunks),
                  int(plan.filter_blocks), plan.rotated, out);
}

template <typename T>
cudaError_t run(const CudaCall& call) {
    if (call.direction == Direction::backward_weight) return winograd_weight<2, T>(call);
    const Plan<T> plan(call.shape, call.direction);
    char* free = static_cast<char*>(call.workspace);
    const T* transformed = static_cast<const T*>(call.prepared);
    if (!transformed) {
        transformed = reinterpret_cast<const T*>(free);
        const cudaError_t error = transform(plan, static_cast<const T*>(call.right), reinterpret_cast<T*>(free),
                                            call.stream);
        if (error != cudaSuccess) return error;
        free += plan.filter_bytes();
    }
    T* const out = static_cast<T*>(call.out);
    T* const parts = plan.splits > 1 ? reinterpret_cast<T*>(free) : out;
    const cudaError_t error = launch(winograd_fused<T>, dim3(unsigned(plan.blocks())), dim3(kThreads),
                                     sizeof(FusedMemory<T>), call.stream, plan.layer(call, transformed, parts));
    if (error != cudaSuccess || plan.splits == 1) return error;
    return add_parts<T>(parts, plan.out_elements, plan.splits, out, call.stream);
}

template <typename T>
cudaError_t prepare(const ConvShape& shape, const void* weight, void* prepared, cudaStream_t stream) {
    return transform(Plan<T>(shape, Direction::forward), static_cast<const T*>(weight), static_cast<T*>(prepared),
                     stream);
}

int64_t prepared_bytes(const ConvShape& shape, int size) {
    return size == 4 ? Plan<float>(shape, Direction::forward).filter_bytes()
                     : Plan<double>(shape, Direction::forward).filter_bytes();
}

template <typename T>
int64_t workspace_of(const ConvShape& shape, Direction direction, bool prepared) {
    const Plan<T> plan(shape, direction);
    return (prepared ? 0 : plan.filter_bytes()) + plan.split_bytes();
}

int64_t workspace(const ConvShape& shape, Direction direction, int size, bool prepared) {
    if (direction == Direction::backward_weight) return winograd_weight_workspace<2>(shape, size);
    return size == 4 ? workspace_of<float>(shape, direction, prepared)
                     : workspace_of<double>(shape, direction, prepared);
}

const char* refuses(const ConvShape& s, Direction direction) {
    const char* const refused = winograd_refuses(s, direction);
    if (refused || direction == Direction::backward_weight) return refused;
    // The smaller blocks of doubles are more.
    if (!Plan<double>(s, direction).countable()) return "it is too large for numbers of 32 bits";
    return nullptr;
}

}  // namespace

const CudaAlgorithm winograd2 = {"winograd2",    refuses,        workspace,       run<float>, run<double>,
                                 prepared_bytes, prepare<float>, prepare<double>, nullptr};

}  // namespace cuda
}  // namespace engine
