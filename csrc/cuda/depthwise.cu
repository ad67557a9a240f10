// Depthwise convolution (every channel has a filter of its own), computed directly.
//
// Each input value is multiplied by few weights, and no matrix product can share it between filters: up to filters of
// about 7x7 the memory decides, and then the arithmetic, if loads are few. Both kernels therefore hold a tile of results
// in registers and use each value that they read for all of it: depthwise_correlate.h for the outputs and the gradient
// of the images, depthwise_weight.h for that of the weight. They are compiled for filters of up to 3, 5 and 7 taps a
// side with stride 1 and 2, and once for all others. Values go straight from NHWC memory to registers and back, the
// weight is read as it is, and only the gradient of the weight needs a workspace and a second launch.
#include "convolution.h"
#include "depthwise_axis.h"
#include "depthwise_correlate.h"
#include "depthwise_weight.h"

namespace engine {
namespace cuda {
namespace {

constexpr int64_t kMultiprocessors = 132;  // of an H100 or H200

const char* refuses(const ConvShape& s, Direction) {
    if (s.groups != s.channels) return "the groups have more than one channel";
    if (s.filters != s.channels) return "a channel has more than one filter";
    if (s.channels > INT32_MAX - kLanes) return "it has too many channels for numbers of 32 bits";
    return too_far(s);
}

AxisShape rows_of(const ConvShape& s, Direction direction, int step, int height) {
    return axis_shape(direction, step, height, s.height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.out_h);
}
AxisShape columns_of(const ConvShape& s, Direction direction, int step, int width) {
    return axis_shape(direction, step, width, s.width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.out_w);
}

// The stride and the most taps that a kernel needs to be compiled for; 0 taps: the one for all shapes.
struct Special {
    int step, taps;
};
Special special_of(const ConvShape& s, Direction direction) {
    const bool backward = direction == Direction::backward_input;
    const int64_t step = backward ? 1 : s.stride_h;
    if ((s.dilation_h != 1 && s.kernel_h > 1) || (s.dilation_w != 1 && s.kernel_w > 1)) return {1, 0};
    if (step > 2 || (!backward && s.stride_w != step)) return {1, 0};
    const int64_t down = backward ? (s.kernel_h + s.stride_h - 1) / s.stride_h : s.kernel_h;
    const int64_t across = backward ? (s.kernel_w + s.stride_w - 1) / s.stride_w : s.kernel_w;
    const int64_t taps = down > across ? down : across;
    if (taps > 7) return {1, 0};
    return {int(step), taps <= 3 ? 3 : taps <= 5 ? 5 : 7};
}

cudaError_t grid_of(int64_t blocks, dim3& grid) {
    if (blocks > 2147483647) return cudaErrorInvalidConfiguration;
    grid = dim3(unsigned(blocks));
    return cudaSuccess;
}

// Warps that tiles of this size give.
template <typename Tile>
int64_t warps(const ConvShape& s, Direction direction) {
    const AxisShape rows = rows_of(s, direction, Tile::step, Tile::height);
    const AxisShape columns = columns_of(s, direction, Tile::step, Tile::width);
    return s.batch * ceil_div(int(s.channels), kLanes) * rows.phases * columns.phases * rows.strips * columns.strips;
}

template <typename Tile>
cudaError_t launch_correlate(const CudaCall& call) {
    using T = typename Tile::T;
    const ConvShape& s = call.shape;
    Correlation<T> c{};
    c.input = static_cast<const T*>(call.left);
    c.weight = static_cast<const T*>(call.right);
    c.bias = call.direction == Direction::forward ? static_cast<const T*>(call.bias) : nullptr;
    c.output = static_cast<T*>(call.out);
    c.channels = int(s.channels);
    c.channel_blocks = ceil_div(c.channels, kLanes);
    c.rows = rows_of(s, call.direction, Tile::step, Tile::height);
    c.columns = columns_of(s, call.direction, Tile::step, Tile::width);
    c.backward = call.direction == Direction::backward_input;
    c.warps_across = c.columns.strips > 1 ? 2 : 1;  // square, so that the warps of a block share much of the input
    c.blocks_across = ceil_div(c.columns.strips, c.warps_across);
    c.blocks_down = ceil_div(c.rows.strips, kWarps / c.warps_across);
    dim3 grid;
    const cudaError_t error = grid_of(s.batch * c.rows.phases * c.columns.phases * c.blocks_down * c.blocks_across *
                                          c.channel_blocks, grid);
    if (error != cudaSuccess) return error;
    return launch(correlate<Tile>, grid, dim3(kThreads), sizeof(typename Tile::Filter), call.stream, c);
}

// The larger tile, which reads less, if it keeps the GPU busy (8 warps for each multiprocessor), else the smaller.
template <typename Large, typename Small>
cudaError_t launch_larger(const CudaCall& call) {
    const bool busy = warps<Large>(call.shape, call.direction) >= 8 * kMultiprocessors;
    return busy ? launch_correlate<Large>(call) : launch_correlate<Small>(call);
}

// Seven outputs across, as most images are multiples of 7 pixels wide.
template <typename T, int step>
cudaError_t run_special(const CudaCall& call, int taps) {
    if (taps == 3) return launch_larger<Tile<T, 3, step, 7, 4>, Tile<T, 3, step, 7, 1>>(call);
    if (taps == 5) return launch_larger<Tile<T, 5, step, 7, 4>, Tile<T, 5, step, 7, 1>>(call);
    return launch_larger<Tile<T, 7, step, 7, 4>, Tile<T, 7, step, 7, 1>>(call);
}

template <typename T>
cudaError_t run_correlate(const CudaCall& call) {
    const Special special = special_of(call.shape, call.direction);
    if (special.taps && special.step == 2) return run_special<T, 2>(call, special.taps);
    if (special.taps) return run_special<T, 1>(call, special.taps);
    using Narrow = Tile<T, 16, 1, 7, 2>;
    const bool narrow = call.shape.out_w <= Narrow::width;
    return narrow ? launch_correlate<Narrow>(call) : launch_larger<Tile<T, 16, 1, 14, 2>, Narrow>(call);
}

// Calls `use` with the WeightTile of a shape.
template <typename T, int width, typename Use>
auto with_weight_tile(const ConvShape& s, Use use) {
    const Special special = special_of(s, Direction::backward_weight);
    if (special.taps == 3 && special.step == 1) return use(WeightTile<T, 3, 3, 1, width>{});
    if (special.taps == 3) return use(WeightTile<T, 3, 3, 2, width>{});
    if (special.taps == 5 && special.step == 1) return use(WeightTile<T, 5, 5, 1, width>{});
    if (special.taps == 5) return use(WeightTile<T, 5, 5, 2, width>{});
    if (special.taps == 7 && special.step == 1) return use(WeightTile<T, 7, 7, 1, width>{});
    if (special.taps == 7) return use(WeightTile<T, 7, 7, 2, width>{});
    return use(WeightTile<T, 4, 8, 1, width>{});
}
template <typename T, typename Use>
auto with_weight_tile(const ConvShape& s, Use use) {
    if constexpr (sizeof(T) == sizeof(float))  // doubles of wider strips would not fit into the registers
        if (s.out_w > 7) return with_weight_tile<T, 14>(s, use);
    return with_weight_tile<T, 7>(s, use);
}

// All but the addresses. As many parts as give each multiprocessor 16 warps, if there are as many strips.
template <typename Tile>
WeightSum<typename Tile::T> weight_sum(const ConvShape& s) {
    WeightSum<typename Tile::T> sum{};
    sum.channels = int(s.channels);
    sum.channel_blocks = ceil_div(sum.channels, kLanes);
    sum.rows = rows_of(s, Direction::backward_weight, Tile::step, Tile::height);
    sum.columns = columns_of(s, Direction::backward_weight, Tile::step, Tile::width);
    sum.tiles_down = tap_parts(sum.rows, forward_axis(sum.rows), Tile::taps_down);
    sum.tiles_across = tap_parts(sum.columns, forward_axis(sum.columns), Tile::taps_across);
    sum.strips = s.batch * sum.rows.strips * sum.columns.strips;
    const int64_t wanted = 16 * kMultiprocessors / (int64_t(sum.channel_blocks) * sum.tiles_down * sum.tiles_across);
    const int64_t parts = wanted < sum.strips ? wanted : sum.strips;
    sum.parts = parts < 1 ? 1 : int(parts);
    return sum;
}

template <typename T>
cudaError_t run_weight(const CudaCall& call) {
    return with_weight_tile<T>(call.shape, [&](auto tile) {
        using Tile = decltype(tile);
        WeightSum<T> s = weight_sum<Tile>(call.shape);
        s.gradient = static_cast<const T*>(call.left);
        s.image = static_cast<const T*>(call.right);
        s.partial = static_cast<T*>(call.workspace);
        const int64_t taps = call.shape.kernel_h * call.shape.kernel_w;
        const int64_t units = int64_t(s.parts) * s.channel_blocks * s.tiles_down * s.tiles_across;
        dim3 grid, join_grid;
        cudaError_t error = grid_of((units + kWarps - 1) / kWarps, grid);
        if (error == cudaSuccess) error = grid_of(taps * s.channel_blocks, join_grid);
        if (error == cudaSuccess)
            error = launch(sum_parts<Tile>, grid, dim3(kThreads), sizeof(typename Tile::Sums), call.stream, s);
        if (error != cudaSuccess) return error;
        return launch(join_parts<T>, join_grid, dim3(kJoinWarps * kLanes), sizeof(JoinedSums<T>), call.stream,
                      static_cast<const T*>(s.partial), static_cast<T*>(call.out), s.parts, taps, s.channels,
                      s.channel_blocks);
    });
}

template <typename T>
cudaError_t run(const CudaCall& call) {
    return call.direction == Direction::backward_weight ? run_weight<T>(call) : run_correlate<T>(call);
}

template <typename T>
int64_t workspace_bytes(const ConvShape& s) {
    return with_weight_tile<T>(s, [&](auto tile) {
        return weight_sum<decltype(tile)>(s).parts * s.kernel_h * s.kernel_w * s.channels * int64_t(sizeof(T));
    });
}

int64_t workspace(const ConvShape& s, Direction direction, int size, bool) {
    if (direction != Direction::backward_weight) return 0;
    return size == sizeof(float) ? workspace_bytes<float>(s) : workspace_bytes<double>(s);
}

}  // namespace

const CudaAlgorithm depthwise = {"depthwise", refuses, workspace, run<float>, run<double>,
                                 nullptr,     nullptr, nullptr,   nullptr};

}  // namespace cuda
}  // namespace engine
