// Convolution by the fast Fourier transform, in tiles of 16 x 16 or 32 x 32: the larger the filter, the more it saves.
//
// Mathieu, Henaff and LeCun, "Fast training of convolutional networks through FFTs", ICLR 2014; Vasilache and others,
// "Fast convolutional nets with fbfft: a GPU performance evaluation", ICLR 2015. The tiles overlap by the filter's size
// less one (overlap-save): a product of spectra is a convolution round a circle, and its results are right wherever
// nothing wrapped round. In steps:
//   1. transform the filters, once, and a portion of the tiles of the images (fft_tile.h);
//   2. at each frequency multiply two complex matrices, tiles x channels and channels x filters (fft_spectra.h);
//   3. transform back, and write what is right and asked for, plus the bias.
// The gradient of the images is the same with the roles of channels and filters exchanged. That of the weight has at
// each frequency the product filters x tiles times tiles x channels, summed over the portions, and one transform back at
// the end. Where the definition has a correlation and not a convolution, one factor is laid into its tile mirrored.
//
// A product for each of 130 or 514 frequencies is work for a whole GPU even where there are few tiles.
#include "fft_plan.h"

namespace engine {
namespace cuda {
namespace {

// One axis of the three arrays: all that strides, dilations, padding and mirrored filters are. The pitch is left out.
struct Geometry {
    int64_t image, result, kernel, stride, padding, dilation, filter, tile, tiles;

    TileAxis images(int64_t pitch, int64_t before) const {  // those that the results of a tile need
        return {image, pitch, 1, -before, tile + filter - 1, tiles, tile, 0, false};
    }
    TileAxis image_results(int64_t pitch, int64_t start) const {
        return {image, pitch, 1, 0, tile, tiles, tile, int(start), false};
    }
    TileAxis gradients(int64_t pitch, int64_t before) const {  // as images()
        return {result, pitch, stride, -before, tile + filter - 1, tiles, tile, 0, false};
    }
    TileAxis results(int64_t pitch, bool mirrored) const {
        return {result, pitch, stride, 0, tile, tiles, tile, 0, mirrored};
    }
    TileAxis taps(int64_t pitch, bool mirrored) const {
        return {kernel, pitch, dilation, 0, filter, 1, 0, 0, mirrored};
    }
};

template <typename T>
class FftConvolution {
public:
    FftConvolution(const ConvShape& shape, Direction direction, cudaStream_t stream)
        : s_(shape),
          plan_(plan_of(shape, direction)),
          forward_(direction == Direction::forward),
          y_{s_.height, s_.out_h, s_.kernel_h, s_.stride_h, s_.padding_h, s_.dilation_h, plan_.filter_h, plan_.tile_h,
             plan_.tiles_y},
          x_{s_.width, s_.out_w, s_.kernel_w, s_.stride_w, s_.padding_w, s_.dilation_w, plan_.filter_w, plan_.tile_w,
             plan_.tiles_x},
          stream_(stream) {}

    cudaError_t prepare(const T* weight, T* spectra) const {
        const int64_t rows = plan_.filters.rows;
        return transform(filters(weight, forward_), 0, rows, spectra, plan_.filters);
    }

    cudaError_t run(const CudaCall& call) const {
        const T* left = static_cast<const T*>(call.left);
        const T* right = static_cast<const T*>(call.right);
        T* const out = static_cast<T*>(call.out);
        T* const images = static_cast<T*>(call.workspace);
        T* const results = images + frequencies(plan_.size) * plan_.images.frequency();
        T* const filters = results + frequencies(plan_.size) * plan_.results.frequency();
        if (call.direction == Direction::backward_weight) return find_gradient(left, right, images, results, filters, out);
        const T* const prepared = call.prepared ? static_cast<const T*>(call.prepared) : filters;
        if (!call.prepared)
            if (const cudaError_t error = prepare(right, filters)) return error;
        if (forward_) return convolve(left, prepared, static_cast<const T*>(call.bias), images, results, out);
        return find_input(left, prepared, images, results, out);
    }

private:
    // Arrays by the places that their tiles take.
    template <typename Element>
    TiledArray<Element> images(Element* data, const TileAxis& rows, const TileAxis& columns) const {
        return {data, s_.height * s_.width * s_.channels, s_.channels / s_.groups, rows, columns};
    }
    template <typename Element>
    TiledArray<Element> results(Element* data, const TileAxis& rows, const TileAxis& columns) const {
        return {data, s_.out_h * s_.out_w * s_.filters, s_.filters / s_.groups, rows, columns};
    }
    template <typename Element>
    TiledArray<Element> filters(Element* data, bool mirrored) const {
        const int64_t channels = s_.channels / s_.groups, filter = s_.kernel_h * s_.kernel_w * channels;
        return {data, filter, filter * (s_.filters / s_.groups), y_.taps(s_.kernel_w * channels, mirrored),
                x_.taps(channels, mirrored)};
    }
    int64_t image_line() const { return s_.width * s_.channels; }
    int64_t result_line() const { return s_.out_w * s_.filters; }

    template <int size>
    static dim3 blocks(int64_t count, const Spectra& spectra) {
        return dim3(unsigned(divide_up(count * spectra.groups * spectra.padded(), TileBlock<T, size>::lanes)));
    }
    template <int size>
    static dim3 threads() { return dim3(TileBlock<T, size>::lanes, TileBlock<T, size>::pairs); }

    cudaError_t transform(const TiledArray<const T>& from, int64_t first, int64_t count, T* to,
                          const Spectra& spectra) const {
        if (plan_.size == 16)
            return launch(transform_tiles<T, 16>, blocks<16>(count, spectra), threads<16>(), sizeof(TileBlock<T, 16>),
                          stream_, from, first, count, to, spectra);
        return launch(transform_tiles<T, 32>, blocks<32>(count, spectra), threads<32>(), sizeof(TileBlock<T, 32>),
                      stream_, from, first, count, to, spectra);
    }
    cudaError_t invert(const T* from, const Spectra& spectra, const T* bias, const TiledArray<T>& to, int64_t first,
                       int64_t count) const {
        if (plan_.size == 16)
            return launch(invert_tiles<T, 16>, blocks<16>(count, spectra), threads<16>(), sizeof(TileBlock<T, 16>),
                          stream_, from, spectra, bias, to, first, count);
        return launch(invert_tiles<T, 32>, blocks<32>(count, spectra), threads<32>(), sizeof(TileBlock<T, 32>), stream_,
                      from, spectra, bias, to, first, count);
    }

    // The rows of a portion's tiles, as the left factor of a product and as its result.
    static Matrix<T, true> tiles(const T* data, int64_t count, const Spectra& spectra) {
        return {data, count, spectra.stride(), spectra.stride(), spectra.matrix()};
    }
    static MatrixOut<T> sums(T* data, const Spectra& spectra) {
        return {data, spectra.stride(), spectra.matrix()};
    }

    // Mirrored filters reach ahead: the results are right from a tile's first place on.
    cudaError_t convolve(const T* data, const T* filters, const T* bias, T* image_tiles, T* result_tiles, T* out) const {
        const auto from = images(data, y_.images(image_line(), s_.padding_h), x_.images(s_.channels, s_.padding_w));
        const auto to = results(out, y_.results(result_line(), false), x_.results(s_.filters, false));
        const OverChannels<T> right = {filters, plan_.filters.rows, plan_.results.padded(), plan_.filters.padded(),
                                       plan_.filters.matrix()};
        for (int64_t first = 0; first < plan_.tiles; first += plan_.portion) {
            const int64_t count = std::min<int64_t>(plan_.portion, plan_.tiles - first);
            const Extent extent = {count, plan_.results.stride(), plan_.images.stride(), plan_.batches()};
            if (const cudaError_t error = transform(from, first, count, image_tiles, plan_.images)) return error;
            if (const cudaError_t error = product<T>(extent, tiles(image_tiles, count, plan_.images), right,
                                                     sums(result_tiles, plan_.results), stream_))
                return error;
            if (const cudaError_t error = invert(result_tiles, plan_.results, bias, to, first, count)) return error;
        }
        return cudaSuccess;
    }

    // Filters as they are reach back: the first results of a tile are not right.
    cudaError_t find_input(const T* data, const T* filters, T* image_tiles, T* result_tiles, T* out) const {
        const int64_t reach_h = plan_.filter_h - 1, reach_w = plan_.filter_w - 1;
        const auto from = results(data, y_.gradients(result_line(), reach_h - s_.padding_h),
                                  x_.gradients(s_.filters, reach_w - s_.padding_w));
        const auto to = images(out, y_.image_results(image_line(), reach_h), x_.image_results(s_.channels, reach_w));
        const OverRows<T, false> right = {filters, plan_.filters.rows, plan_.results.padded(), plan_.filters.padded(),
                                          plan_.filters.matrix()};
        for (int64_t first = 0; first < plan_.tiles; first += plan_.portion) {
            const int64_t count = std::min<int64_t>(plan_.portion, plan_.tiles - first);
            const Extent extent = {count, plan_.images.stride(), plan_.results.stride(), plan_.batches()};
            if (const cudaError_t error = transform(from, first, count, result_tiles, plan_.results)) return error;
            if (const cudaError_t error = product<T>(extent, tiles(result_tiles, count, plan_.results), right,
                                                     sums(image_tiles, plan_.images), stream_))
                return error;
            if (const cudaError_t error = invert(image_tiles, plan_.images, nullptr, to, first, count)) return error;
        }
        return cudaSuccess;
    }

    cudaError_t find_gradient(const T* gradient, const T* data, T* image_tiles, T* result_tiles, T* weight_sums,
                              T* out) const {
        const auto mirrored = results(gradient, y_.results(result_line(), true), x_.results(s_.filters, true));
        const auto around = images(data, y_.images(image_line(), s_.padding_h), x_.images(s_.channels, s_.padding_w));
        for (int64_t first = 0; first < plan_.tiles; first += plan_.portion) {
            const int64_t count = std::min<int64_t>(plan_.portion, plan_.tiles - first);
            const Extent extent = {plan_.filters.rows, plan_.images.stride(), 2 * count, plan_.batches()};
            // A row of spectra is two of the depth: its real parts, then its imaginary parts.
            const Matrix<T, false> left = {result_tiles, plan_.filters.rows, 2 * count, plan_.results.padded(),
                                           plan_.results.matrix()};
            const OverRows<T, true> right = {image_tiles, count, 0, plan_.images.padded(), plan_.images.matrix()};
            const MatrixOut<T> to = {weight_sums, plan_.filters.stride(), plan_.filters.matrix(), 0, first > 0};
            if (const cudaError_t error = transform(mirrored, first, count, result_tiles, plan_.results)) return error;
            if (const cudaError_t error = transform(around, first, count, image_tiles, plan_.images)) return error;
            if (const cudaError_t error = product<T>(extent, left, right, to, stream_)) return error;
        }
        return invert(weight_sums, plan_.filters, nullptr, filters(out, false), 0, plan_.filters.rows);
    }

    const ConvShape s_;
    const Plan plan_;
    const bool forward_;
    const Geometry y_, x_;
    const cudaStream_t stream_;
};

// Whether any tap of any result falls on an element, along one axis: with strides, dilation and padding it may be none.
bool meets(int64_t extent, int64_t results, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    for (int64_t y = 0; y < results; ++y) {
        const int64_t before = padding - y * stride;  // places from the first tap to the image, if it lies before that
        const int64_t tap = before > 0 ? divide_up(before, dilation) : 0;
        if (tap < kernel && tap * dilation - before < extent) return true;
    }
    return false;
}

const char* refuses(const ConvShape& s, Direction direction) {
    // The rounding of what is dropped would show where there is nothing else.
    if (!meets(s.height, s.out_h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h) ||
        !meets(s.width, s.out_w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w))
        return "no tap of the filter ever falls on the image";
    const Plan plan = plan_of(s, direction);
    if (plan.size == 0) return "the filter, with its dilation, is larger than 17";
    if (plan.tile_elements() + plan.filter_elements() > (int64_t{2} << 30) / 4)
        return "its spectra would need more than 2 GiB in float32";
    return nullptr;
}

int64_t workspace(const ConvShape& s, Direction direction, int size, bool prepared) {
    const Plan plan = plan_of(s, direction);
    return (plan.tile_elements() + (prepared ? 0 : plan.filter_elements())) * size;
}

template <typename T>
cudaError_t run(const CudaCall& call) {
    return FftConvolution<T>(call.shape, call.direction, call.stream).run(call);
}

int64_t prepared_bytes(const ConvShape& s, int size) { return plan_of(s, Direction::forward).filter_elements() * size; }

template <typename T>
cudaError_t prepare(const ConvShape& s, const void* weight, void* prepared, cudaStream_t stream) {
    return FftConvolution<T>(s, Direction::forward, stream)
        .prepare(static_cast<const T*>(weight), static_cast<T*>(prepared));
}

double waste(const ConvShape& s) { return static_cast<double>(s.stride_h * s.stride_w - 1); }

}  // namespace

const CudaAlgorithm fft = {"fft",          refuses,        workspace,       run<float>, run<double>,
                           prepared_bytes, prepare<float>, prepare<double>, waste};

}  // namespace cuda
}  // namespace engine
