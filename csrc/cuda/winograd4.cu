// Convolution by Winograd's minimal filtering, F(4x4, 3x3), in separate steps: a tile of 4x4 outputs comes from 6x6
// inputs with 36 multiplications per channel and filter, where the definition takes 144.
//
//   inputs[place][group][tile][channel]    = B^T d B    tiles overlap by two pixels
//   filters[place][group][filter][channel] = G g G^T
//   sums[place][group][tile][filter]       = inputs x filters, a matrix product for each place and group
//   outputs                                = A^T sums A, plus the bias
//
// The gradient of the images is the convolution of the gradient of the outputs with the filters rotated by half a turn,
// whose channels and filters trade places: their transform writes the same layout, and the product reads it the other
// way. The gradient of the weight is in winograd.h, as is why the steps are as they are.
// Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; Winograd, "Arithmetic complexity of
// computations", SIAM 1980.
#include "winograd.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kOutputs = 4, kSize = kOutputs + 2;
constexpr int64_t kPlaces = kSize * kSize;

// Transforms a weight, [filters][3][3][columns]; filter number f is row f of the matrices, counted through all groups.
template <typename T>
__global__ void __launch_bounds__(kTransformThreads)
    transform_filters(const T* weight, bool rotated, T* out, Layout layout) {
    const int64_t index = int64_t{blockIdx.x} * kTransformThreads + threadIdx.x;
    const int64_t filter = index / layout.columns, channel = index - filter * layout.columns;
    if (filter >= layout.groups * layout.rows) return;
    const T* from = weight + filter * 9 * layout.columns + channel;
    T taps[3][3], places[kSize][kSize];
    ENGINE_UNROLL
    for (int i = 0; i < 3; ++i)
        ENGINE_UNROLL
        for (int j = 0; j < 3; ++j) taps[i][j] = __ldg(from + (rotated ? 8 - i * 3 - j : i * 3 + j) * layout.columns);
    transform_filter<kOutputs, 3>(taps, places);
    T* to = out + filter * layout.stride() + channel;
    ENGINE_UNROLL
    for (int i = 0; i < kSize; ++i)
        ENGINE_UNROLL
        for (int j = 0; j < kSize; ++j, to += layout.place()) *to = places[i][j];
}

// Transforms the sums of `count` tiles from `first` on to outputs; bias may be null.
template <typename T>
__global__ void __launch_bounds__(kTransformThreads)
    transform_sums(const T* sums, Layout layout, const T* bias, T* out, Pictures layer, int64_t first, int64_t count) {
    const int64_t index = int64_t{blockIdx.x} * kTransformThreads + threadIdx.x;
    const int64_t row = index / layer.channels, channel = index - row * layer.channels;
    if (row >= count) return;
    T places[kSize][kSize], results[kOutputs][kOutputs];
    const T* from = sums + layout.at(row, channel);
    ENGINE_UNROLL
    for (int i = 0; i < kSize; ++i)
        ENGINE_UNROLL
        for (int j = 0; j < kSize; ++j, from += layout.place()) places[i][j] = __ldg(from);
    transform_output<kOutputs, 3>(places, results);
    const T added = bias ? __ldg(bias + channel) : T(0);
    const Pictures::Corner corner = layer.corner(first + row);
    T* line = out + layer.pixel(corner, channel);
    ENGINE_UNROLL
    for (int i = 0; i < kOutputs; ++i, line += layer.width * layer.channels) {
        T* pixel = line;
        ENGINE_UNROLL
        for (int j = 0; j < kOutputs; ++j, pixel += layer.channels)
            if (corner.y + i < layer.height && corner.x + j < layer.width) *pixel = results[i][j] + added;
    }
}

// One of the two directions that convolve, F(4x4, 3x3), and how it is cut into portions.
struct Plan {
    bool rotated;
    int64_t tiles, portion;
    Pictures from, to;
    Layout inputs, sums, filters;

    Plan(const ConvShape& s, Direction direction, int size) : rotated(direction == Direction::backward_input) {
        const int64_t height = rotated ? s.height : s.out_h, width = rotated ? s.width : s.out_w;
        const int64_t channels = rotated ? s.filters : s.channels, results = rotated ? s.channels : s.filters;
        const int64_t down = divide_up(height, kOutputs), across = divide_up(width, kOutputs);
        const int top = int(rotated ? s.padding_h - 2 : -s.padding_h);
        const int left = int(rotated ? s.padding_w - 2 : -s.padding_w);
        const int from_h = int(rotated ? s.out_h : s.height), from_w = int(rotated ? s.out_w : s.width);
        from = {channels, from_h, from_w, top, left, kOutputs, down, across};
        to = {results, int(height), int(width), 0, 0, kOutputs, down, across};
        inputs = {s.groups, 1, channels / s.groups};
        sums = {s.groups, 1, results / s.groups};
        filters = {s.groups, s.filters / s.groups, s.channels / s.groups};
        tiles = s.batch * down * across;
        portion = tiles_at_a_time(tiles, kPlaces * (inputs.place() + sums.place()) * size, kCached);
        inputs.rows = sums.rows = portion;
    }
    int64_t filter_elements() const { return kPlaces * filters.place(); }
};

int64_t prepared_bytes(const ConvShape& shape, int size) {
    return Plan(shape, Direction::forward, size).filter_elements() * size;
}

int64_t workspace(const ConvShape& shape, Direction direction, int size, bool prepared) {
    if (direction == Direction::backward_weight) return winograd_weight_workspace<kOutputs>(shape, size);
    const Plan plan(shape, direction, size);
    const int64_t tiles = kPlaces * (plan.inputs.place() + plan.sums.place());
    return (tiles + (prepared ? 0 : plan.filter_elements())) * size;
}

template <typename T>
cudaError_t launch_transform_filters(const Plan& plan, const void* weight, T* filters, cudaStream_t stream) {
    const Layout& layout = plan.filters;
    return launch(transform_filters<T>, blocks_for(layout.groups * layout.rows * layout.columns), kTransformThreads, 0,
                  stream, static_cast<const T*>(weight), plan.rotated, filters, layout);
}

template <typename T>
cudaError_t prepare(const ConvShape& shape, const void* weight, void* prepared, cudaStream_t stream) {
    const Plan plan(shape, Direction::forward, sizeof(T));
    return launch_transform_filters(plan, weight, static_cast<T*>(prepared), stream);
}

// sums = inputs x filters for the first `count` tiles of a portion, all places and groups in one launch.
template <typename T>
cudaError_t multiply(const Plan& plan, int64_t count, const T* inputs, const T* filters, T* sums, cudaStream_t stream) {
    const Extent extent = {count, plan.sums.columns, plan.inputs.columns, kPlaces * plan.sums.groups};
    const Matrix<T, true> left{inputs, count, plan.inputs.columns, plan.inputs.stride(), plan.inputs.matrix()};
    const MatrixOut<T> out{sums, plan.sums.stride(), plan.sums.matrix()};
    const auto multiply_by = [&](const auto& right) { return product<T>(extent, left, right, out, stream); };
    const int64_t stride = plan.filters.stride(), matrix = plan.filters.matrix();
    // Rotated, the channels to sum over are the weight's filters: the rows of what transform_filters writes.
    if (plan.rotated) return multiply_by(Matrix<T, false>{filters, extent.columns, extent.depth, stride, matrix});
    return multiply_by(Matrix<T, true>{filters, extent.columns, extent.depth, stride, matrix});
}

template <typename T>
cudaError_t run(const CudaCall& call) {
    if (call.direction == Direction::backward_weight) return winograd_weight<kOutputs, T>(call);
    const Plan plan(call.shape, call.direction, sizeof(T));
    T* const inputs = static_cast<T*>(call.workspace);
    T* const sums = inputs + kPlaces * plan.inputs.place();
    T* const transformed = sums + kPlaces * plan.sums.place();
    const T* const filters = call.prepared ? static_cast<const T*>(call.prepared) : transformed;
    if (!call.prepared) {
        const cudaError_t error = launch_transform_filters(plan, call.right, transformed, call.stream);
        if (error != cudaSuccess) return error;
    }
    for (int64_t first = 0; first < plan.tiles; first += plan.portion) {
        const int64_t count = std::min(plan.portion, plan.tiles - first);
        if (const cudaError_t error = launch_transform_tiles<InputLine<kOutputs, 3>>(
                static_cast<const T*>(call.left), plan.from, first, count, inputs, plan.inputs, call.stream))
            return error;
        if (const cudaError_t error = multiply(plan, count, inputs, filters, sums, call.stream)) return error;
        if (const cudaError_t error = launch(transform_sums<T>, blocks_for(count * plan.to.channels),
                                             kTransformThreads, 0, call.stream, sums, plan.sums,
                                             static_cast<const T*>(call.bias), static_cast<T*>(call.out), plan.to,
                                             first, count))
            return error;
    }
    return cudaSuccess;
}

}  // namespace

const CudaAlgorithm winograd4 = {
    "winograd4", winograd_refuses, workspace, run<float>, run<double>, prepared_bytes, prepare<float>, prepare<double>,
    nullptr};

}  // namespace cuda
}  // namespace engine
