// Convolution as a matrix product whose patches are gathered on the way (implicit GEMM): any filter size, stride,
// padding, dilation and groups, and no memory but where a product is so small that its depth is shared among blocks.
// patches.h says how the arrays are read, tile_product.h how they are multiplied.
#include "patches.h"

namespace engine {
namespace cuda {
namespace {

constexpr int64_t kMostBytes = int64_t{128} << 20;  // of the parts of a result

// A direction's product, the same for both types.
struct Plan {
    Window window;
    Extent extent;
    int64_t results;  // elements of the result

    Plan(const ConvShape& s, Direction direction) : window(s, direction) {
        const int64_t channels = s.channels / s.groups, filters = s.filters / s.groups;
        const int64_t taps = s.kernel_h * s.kernel_w;
        if (direction == Direction::forward) {
            results = s.batch * s.out_h * s.out_w * s.filters;
            extent = {window.most_pixels(), filters, taps * channels, window.batches()};
        } else if (direction == Direction::backward_input) {
            results = s.batch * s.height * s.width * s.channels;
            extent = {window.most_pixels(), channels, window.most_taps() * filters, window.batches()};
        } else {
            results = s.filters * taps * channels;
            extent = {filters, taps * channels, window.most_pixels(), s.groups};
        }
        extent = cut_depth(extent, kMostBytes / (results * int64_t(sizeof(double))));
    }
};

template <typename T, bool quads>
cudaError_t multiply(const CudaCall& call, const Plan& plan, T* to) {
    const ConvShape& s = call.shape;
    const int channels = int(s.channels / s.groups), filters = int(s.filters / s.groups);
    const int64_t taps = s.kernel_h * s.kernel_w;
    const T* const left = static_cast<const T*>(call.left);
    const T* const right = static_cast<const T*>(call.right);
    if (call.direction == Direction::backward_weight) {
        const Matrix<T, false> gradient{left, filters, plan.extent.depth, s.filters, filters};
        const MatrixOut<T> weight{to, taps * channels, filters * taps * channels, plan.results};
        return product<T>(plan.extent, gradient, PixelsOfTaps<T, quads>(right, plan.window, channels), weight,
                          call.stream);
    }
    if (call.direction == Direction::backward_input) {
        const TapsOfWeight<T, quads> weight(right, plan.window, channels, filters);
        const PixelsOut<T> images(to, nullptr, plan.window, channels, plan.results);
        return product<T>(plan.extent, Patches<T, quads>(left, plan.window, filters), weight, images, call.stream);
    }
    const Matrix<T, true> weight{right, filters, taps * channels, taps * channels, filters * taps * channels};
    const PixelsOut<T> outputs(to, static_cast<const T*>(call.bias), plan.window, filters, plan.results);
    return product<T>(plan.extent, Patches<T, quads>(left, plan.window, channels), weight, outputs, call.stream);
}

template <typename T>
cudaError_t run(const CudaCall& call) {
    const Plan plan(call.shape, call.direction);
    T* const out = static_cast<T*>(call.out);
    T* const to = plan.extent.parts > 1 ? static_cast<T*>(call.workspace) : out;
    const int64_t channels = call.shape.channels / call.shape.groups, filters = call.shape.filters / call.shape.groups;
    const bool quads = channels % 4 == 0 && (call.direction != Direction::backward_input || filters % 4 == 0);
    const cudaError_t error = quads ? multiply<T, true>(call, plan, to) : multiply<T, false>(call, plan, to);
    if (error != cudaSuccess || plan.extent.parts == 1) return error;
    return add_parts<T>(to, plan.results, plan.extent.parts, out, call.stream);
}

int64_t workspace(const ConvShape& shape, Direction direction, int size, bool) {
    const Plan plan(shape, direction);
    return plan.extent.parts > 1 ? plan.extent.parts * plan.results * size : 0;
}

const char* refuses(const ConvShape& s, Direction direction) {
    if (const char* const reason = too_far(s)) return reason;
    constexpr int64_t most = kMostExtent;
    const int64_t weights = s.kernel_h * s.kernel_w * (s.channels > s.filters ? s.channels : s.filters);
    if (s.batch > most || s.batch * s.out_h * s.out_w > most || s.batch * s.height * s.width > most || weights > most)
        return "it is too large for numbers of 32 bits";
    // Filters and channels are among the sizes of the product: what is left to refuse is a grid that is too large.
    const Extent extent = Plan(s, direction).extent;
    const double tiles = (extent.rows / 64.0 + 1) * (extent.columns / 64.0 + 1);
    return tiles * double(extent.batches) * double(extent.parts) > double(most) ? "its product has too many tiles"
                                                                                : nullptr;
}

}  // namespace

const CudaAlgorithm implicit = {"implicit", refuses, workspace, run<float>, run<double>,
                                nullptr,    nullptr, nullptr,   nullptr};

}  // namespace cuda
}  // namespace engine
