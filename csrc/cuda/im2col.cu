// Convolution as the textbook writes it: the patches of the images are written to memory as a matrix (im2col), a matrix
// product does the arithmetic, and in the gradient of the images the product's columns are added up where they overlap
// (col2im). Any filter size, stride, padding, dilation and groups.
//
//   matrix[pixel][group][tap][channel]   a row for each pixel of the output, so many pictures at a time as kMostBytes
//                                        has room for, but at least one
//
// Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006.
#include <algorithm>

#include "axis.h"
#include "divider.h"
#include "tile_product.h"

namespace engine {
namespace cuda {
namespace {

constexpr int64_t kMostBytes = portion(int64_t{32} << 20, 20000);  // of the matrix, which is read from the cache then
constexpr int64_t kPartBytes = int64_t{128} << 20;   // of the parts of a weight's gradient
constexpr int64_t kMostElements = kMostExtent;       // of a picture's matrix: places in it are numbers of 32 bits
constexpr int kCopyThreads = 256;

// The matrix of some pictures, and the arrays beside it.
struct Layer {
    AxisSizes rows, columns;
    int groups, channels, filters;  // of one group
    int taps;
    int64_t width;                  // of the matrix
    int64_t picture, result;        // elements of a picture, and of its part of the output
    int pictures;                   // at a time
    Divider by_channels, by_taps, by_taps_across, by_groups, by_out_w, by_out_h, by_width, by_height;
    Divider by_stride_h, by_stride_w;

    Layer(const ConvShape& s, int size)
        : rows(axis_sizes(s.height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.out_h)),
          columns(axis_sizes(s.width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.out_w)),
          groups(int(s.groups)),
          channels(int(s.channels / s.groups)),
          filters(int(s.filters / s.groups)),
          taps(int(s.kernel_h * s.kernel_w)),
          width(s.groups * taps * channels),
          picture(s.height * s.width * s.channels),
          result(s.out_h * s.out_w * s.filters),
          by_channels(channels),
          by_taps(taps),
          by_taps_across(int(s.kernel_w)),
          by_groups(groups),
          by_out_w(int(s.out_w)),
          by_out_h(int(s.out_h)),
          by_width(int(s.width)),
          by_height(int(s.height)),
          by_stride_h(int(s.stride_h)),
          by_stride_w(int(s.stride_w)) {
        const int64_t patches = s.out_h * s.out_w * width, largest = std::max(patches, picture);
        const int64_t most = kMostBytes / (largest * size), portion = std::max<int64_t>(1, most);
        pictures = int(std::min(portion, s.batch));
    }
    int64_t pixels() const { return int64_t{rows.out} * columns.out; }
    int64_t elements() const { return pictures * pixels() * width; }
    int64_t weights() const { return int64_t{groups} * filters * taps * channels; }
    int64_t filter() const { return int64_t{taps} * channels; }
    // The gradient of the weight from a portion.
    Extent weight_product(int count) const {
        return cut_depth({filters, filter(), count * pixels(), groups},
                         kPartBytes / (weights() * int64_t(sizeof(double))));
    }
};

inline dim3 copy_blocks(int64_t elements) { return dim3(unsigned(divide_up(elements, kCopyThreads))); }

// Writes the matrix of `elements / width` pixels, the first of which is the first of the first picture.
template <typename T>
__global__ void __launch_bounds__(kCopyThreads)
    unfold(const T* images, Layer layer, int64_t elements, T* matrix) {
    const int64_t index = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x;
    if (index >= elements) return;
    const int position = layer.by_channels.quotient(int(index)), channel = layer.by_channels.rest(int(index), position);
    const int place = layer.by_taps.quotient(position), tap = layer.by_taps.rest(position, place);
    const int pixel = layer.by_groups.quotient(place), group = layer.by_groups.rest(place, pixel);
    const int line = layer.by_out_w.quotient(pixel), picture = layer.by_out_h.quotient(line);
    const int i = layer.by_taps_across.quotient(tap), j = layer.by_taps_across.rest(tap, i);
    const int y = layer.by_out_h.rest(line, picture) * layer.rows.stride - layer.rows.padding + i * layer.rows.dilation;
    const int x =
        layer.by_out_w.rest(pixel, line) * layer.columns.stride - layer.columns.padding + j * layer.columns.dilation;
    const bool inside = unsigned(y) < unsigned(layer.rows.image) && unsigned(x) < unsigned(layer.columns.image);
    const int64_t from = (int64_t{picture} * layer.rows.image + y) * layer.columns.image + x;
    matrix[index] = inside ? __ldg(images + (from * layer.groups + group) * layer.channels + channel) : T(0);
}

// Adds up, for each of `elements` numbers of pictures, all places of the matrix that came from it, always in one order.
template <typename T>
__global__ void __launch_bounds__(kCopyThreads)
    fold(const T* matrix, Layer layer, int64_t elements, T* images) {
    const int64_t index = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x;
    if (index >= elements) return;
    const int place = layer.by_channels.quotient(int(index)), channel = layer.by_channels.rest(int(index), place);
    const int pixel = layer.by_groups.quotient(place), group = layer.by_groups.rest(place, pixel);
    const int line = layer.by_width.quotient(pixel), picture = layer.by_height.quotient(line);
    const int y = layer.by_height.rest(line, picture) + layer.rows.padding;
    const int x = layer.by_width.rest(pixel, line) + layer.columns.padding;
    const T* const from = matrix + int64_t{group} * layer.taps * layer.channels + channel;
    T sum = 0;
    for (int i = 0; i < layer.rows.kernel; ++i) {
        const int down = y - i * layer.rows.dilation;
        if (down < 0) break;
        const int v = layer.by_stride_h.quotient(down);
        if (layer.by_stride_h.rest(down, v) != 0 || v >= layer.rows.out) continue;
        T of_row = 0;  // each row of taps by itself: fewer roundings in a row
        for (int j = 0; j < layer.columns.kernel; ++j) {
            const int across = x - j * layer.columns.dilation;
            if (across < 0) break;
            const int u = layer.by_stride_w.quotient(across);
            if (layer.by_stride_w.rest(across, u) != 0 || u >= layer.columns.out) continue;
            const int64_t row = (int64_t{picture} * layer.rows.out + v) * layer.columns.out + u;
            of_row += from[row * layer.width + (i * layer.columns.kernel + j) * layer.channels];
        }
        sum += of_row;
    }
    images[index] = sum;
}

// Plus a bias where there is one; results in NHWC.
template <typename T>
struct BiasedOut {
    MatrixOut<T> out;
    const T* bias;
    int64_t filters;

    __device__ BiasedOut at(int64_t batch, int64_t part) const {
        return {out.at(batch, part), bias ? bias + batch * filters : nullptr, filters};
    }
    __device__ void store(int m, int n, const T (&values)[4], int count, bool more) const {
        T sums[4];
        ENGINE_UNROLL
        for (int e = 0; e < 4; ++e) sums[e] = values[e] + (bias && !more && e < count ? __ldg(bias + n + e) : T(0));
        out.store(m, n, sums, count, more);
    }
};

template <typename T>
class Im2col {
public:
    Im2col(const CudaCall& call)
        : call_(call), layer_(call.shape, sizeof(T)), matrix_(static_cast<T*>(call.workspace)) {}

    cudaError_t run() const {
        const T* const left = static_cast<const T*>(call_.left);
        const T* const right = static_cast<const T*>(call_.right);
        T* const out = static_cast<T*>(call_.out);
        for (int64_t first = 0; first < call_.shape.batch; first += layer_.pictures) {
            const int64_t rest = call_.shape.batch - first;
            const int count = int(std::min<int64_t>(rest, layer_.pictures));
            const int64_t picture = first * layer_.picture, result = first * layer_.result;
            cudaError_t error;
            if (call_.direction == Direction::forward)
                error = convolve(left + picture, right, out + result, count);
            else if (call_.direction == Direction::backward_input)
                error = find_images(left + result, right, out + picture, count);
            else
                error = find_weight(left + result, right + picture, out, count, first > 0);
            if (error != cudaSuccess) return error;
        }
        return cudaSuccess;
    }

private:
    cudaError_t unfold_pictures(const T* images, int count) const {
        const int64_t elements = count * layer_.pixels() * layer_.width;
        return launch(unfold<T>, copy_blocks(elements), dim3(kCopyThreads), 0, call_.stream, images, layer_, elements,
                      matrix_);
    }

    cudaError_t convolve(const T* images, const T* weight, T* out, int count) const {
        if (const cudaError_t error = unfold_pictures(images, count)) return error;
        const Extent extent = {count * layer_.pixels(), layer_.filters, layer_.filter(), layer_.groups};
        const Matrix<T, true> left{matrix_, extent.rows, extent.depth, layer_.width, layer_.filter()};
        const Matrix<T, true> right{weight, layer_.filters, extent.depth, extent.depth, layer_.filters * extent.depth};
        const BiasedOut<T> to{{out, call_.shape.filters, layer_.filters}, static_cast<const T*>(call_.bias), layer_.filters};
        return product<T>(extent, left, right, to, call_.stream);
    }

    cudaError_t find_images(const T* gradient, const T* weight, T* out, int count) const {
        const Extent extent = {count * layer_.pixels(), layer_.filter(), layer_.filters, layer_.groups};
        const Matrix<T, true> left{gradient, extent.rows, extent.depth, call_.shape.filters, layer_.filters};
        const Matrix<T, false> right{weight, extent.columns, extent.depth, extent.columns, layer_.filters * extent.columns};
        const MatrixOut<T> to{matrix_, layer_.width, layer_.filter()};
        if (const cudaError_t error = product<T>(extent, left, right, to, call_.stream)) return error;
        const int64_t elements = count * layer_.picture;
        return launch(fold<T>, copy_blocks(elements), dim3(kCopyThreads), 0, call_.stream,
                      static_cast<const T*>(matrix_), layer_, elements, out);
    }

    // Parts of a portion lie behind the matrix. They are added up, and what an earlier portion found is the first of them.
    cudaError_t find_weight(const T* gradient, const T* images, T* out, int count, bool more) const {
        if (const cudaError_t error = unfold_pictures(images, count)) return error;
        const Extent extent = layer_.weight_product(count);
        T* const parts = matrix_ + layer_.elements();
        const bool direct = extent.parts == 1;
        const Matrix<T, false> left{gradient, layer_.filters, extent.depth, call_.shape.filters, layer_.filters};
        const Matrix<T, false> right{matrix_, extent.columns, extent.depth, layer_.width, layer_.filter()};
        const MatrixOut<T> to{direct ? out : parts + (more ? layer_.weights() : 0), layer_.filter(),
                              layer_.filters * layer_.filter(), layer_.weights(), direct && more};
        if (const cudaError_t error = product<T>(extent, left, right, to, call_.stream)) return error;
        if (direct) return cudaSuccess;
        if (more) {
            const cudaError_t error = add_parts<T>(out, layer_.weights(), 1, parts, call_.stream);  // a copy
            if (error != cudaSuccess) return error;
        }
        return add_parts<T>(parts, layer_.weights(), extent.parts + (more ? 1 : 0), out, call_.stream);
    }

    const CudaCall& call_;
    const Layer layer_;
    T* const matrix_;
};

template <typename T>
cudaError_t run(const CudaCall& call) {
    return Im2col<T>(call).run();
}

int64_t workspace(const ConvShape& s, Direction direction, int size, bool) {
    const Layer layer(s, size);
    int64_t parts = 1;
    if (direction == Direction::backward_weight) {
        const int last = int(s.batch % layer.pictures);  // a smaller portion may be cut into more parts
        parts = layer.weight_product(layer.pictures).parts;
        if (last > 0) parts = std::max(parts, layer.weight_product(last).parts);
    }
    return (layer.elements() + (parts == 1 ? 0 : parts + 1) * layer.weights()) * size;
}

const char* refuses(const ConvShape& s, Direction) {
    if (const char* const reason = too_far(s)) return reason;
    const double taps = double(s.kernel_h) * double(s.kernel_w);
    const double matrix = double(s.out_h) * double(s.out_w) * taps * double(s.channels);
    const double weights = taps * double(s.channels) * double(s.filters);
    const double picture = double(s.height) * double(s.width) * double(s.channels);
    if (matrix >= double(kMostElements) || weights >= double(kMostElements) || picture >= double(kMostElements))
        return "a picture's patches are too many for numbers of 32 bits";
    return nullptr;
}

}  // namespace

const CudaAlgorithm im2col = {"im2col", refuses, workspace, run<float>, run<double>,
                              nullptr,  nullptr, nullptr,   nullptr};

}  // namespace cuda
}  // namespace engine
