// Convolution by the fast Fourier transform, in tiles: the larger the filter, the more it saves.
//
// Mathieu, Henaff and LeCun, "Fast training of convolutional networks through FFTs", ICLR 2014; Zlateski, Jia, Li and
// Durand, "FFT convolutions are faster than Winograd on modern CPUs, here is why", 2018. The tiles overlap by the
// filter's size less one (overlap-save): a product of spectra is a convolution round a circle, and its results are
// right wherever nothing wrapped round. Three stages, each shared among the threads:
//   1. transform the filters, once, and a block of tiles of the images;
//   2. at each frequency multiply two complex matrices, tiles x channels and channels x filters;
//   3. transform back, and write what is right and asked for.
// The gradient of the images is the same with the roles of channels and filters exchanged. That of the weight has at
// each frequency the product filters x tiles times tiles x channels, summed over the blocks, and one transform back at
// the end. Where the definition has a correlation and not a convolution, one factor is laid into its tile mirrored.
#include "../team.h"
#include "fft_places.h"
#include "fft_product.h"

namespace engine::ENGINE_ISA {
namespace {

// Threads that can prepare a weight: each needs memory, which lies in what is prepared.
constexpr int kPreparingThreads = 4;

template <typename T>
class FftConvolution {
public:
    FftConvolution(const ConvShape& shape, Direction direction)
        : s_(shape),
          plan_(plan_of(shape, direction)),
          transform_(tile_transform<T>(plan_.size)),
          forward_(direction == Direction::forward),
          weight_(direction == Direction::backward_weight),
          in_(forward_ ? plan_.channels : plan_.filters),
          out_(forward_ ? plan_.filters : plan_.channels) {
        if (weight_) {
            left_ = spectra_layout<T>(plan_, plan_.block, in_);
            right_ = spectra_layout<T>(plan_, plan_.block, out_);
            result_ = spectra_layout<T>(plan_, in_, out_);
        } else {
            left_ = spectra_layout<T>(plan_, plan_.block, larger(in_, out_));  // overwritten by the results
            right_ = spectra_layout<T>(plan_, in_, out_);
        }
        const int64_t turned = forward_ ? taps() * kLanes<T> * kLanes<T> : 0;
        const int64_t transforms = tile_vectors(plan_.size) * kLanes<T> + turned;
        scratch_ = round_up(larger(transforms, product_elements<T>(plan_.block, vectors_of<T>(in_), right_.rows)), 64);
    }

    // Elements of the spectra, of all the memory of a call, and of a prepared weight: that is the filters' spectra of
    // all groups, and behind them the memory that it took to make them.
    int64_t spectra_elements(bool prepared) const {
        return left_.elements + result_.elements + (prepared ? 0 : right_.elements);
    }
    int64_t elements(int threads, bool prepared) const { return spectra_elements(prepared) + threads * scratch_; }
    int64_t prepared_elements() const { return s_.groups * right_.elements + kPreparingThreads * scratch_; }

    void prepare(const T* weight, T* prepared, int threads) {
        scratch_data_ = prepared + s_.groups * right_.elements;
        threads = threads < kPreparingThreads ? threads : kPreparingThreads;
        with_team(threads, [&](Team& team) {
            for (int64_t group = 0; group < s_.groups; ++group)
                transform_filters(team, weight + group * weight_elements(), prepared + group * right_.elements);
        });
    }

    void run(const ConvCall& call) {
        const T* left = static_cast<const T*>(call.left);
        const T* right = static_cast<const T*>(call.right);
        const T* bias = static_cast<const T*>(call.bias);
        const T* prepared = static_cast<const T*>(call.prepared);
        T* out = static_cast<T*>(call.out);
        left_data_ = static_cast<T*>(call.workspace);
        result_data_ = left_data_ + left_.elements;
        T* right_data = result_data_ + result_.elements;
        scratch_data_ = right_data + (prepared ? 0 : right_.elements);
        with_team(call.threads, [&](Team& team) {
            for (int64_t group = 0; group < s_.groups; ++group) {
                const int64_t channel = group * plan_.channels, filter = group * plan_.filters;
                const T* spectra = prepared ? prepared + group * right_.elements : right_data;
                if (weight_) {
                    sum_gradient(team, results(left + filter), images(right + channel), right_data);
                    write_gradient(team, out + group * weight_elements());
                    continue;
                }
                if (!prepared) transform_filters(team, right + group * weight_elements(), right_data);
                if (forward_)
                    correlate(team, images(left + channel), spectra, results(out + filter),
                              bias ? bias + filter : nullptr);
                else
                    correlate(team, results(left + filter), spectra, images(out + channel), nullptr);
            }
        });
    }

private:
    int64_t taps() const { return s_.kernel_h * s_.kernel_w; }
    int64_t weight_elements() const { return plan_.filters * taps() * plan_.channels; }

    template <typename Element>
    Plane<Element> images(Element* data) const {
        return {data, s_.height, s_.width, s_.channels, 1, 1};
    }
    template <typename Element>
    Plane<Element> results(Element* data) const {
        return {data, s_.out_h, s_.out_w, s_.filters, s_.stride_h, s_.stride_w};
    }
    // The taps of a filter in a tile; they are `pitch` elements apart.
    Offsets filter_offsets(int64_t pitch, bool mirrored) const {
        const Plane<T> filter = {nullptr, s_.kernel_h, s_.kernel_w, pitch, s_.dilation_h, s_.dilation_w};
        return offsets_of(filter, {0, plan_.filter_h, 0, mirrored}, {0, plan_.filter_w, 0, mirrored}, plan_.size);
    }

    T* scratch() const { return scratch_data_ + Team::this_thread() * scratch_; }
    Complex<T>* work() const { return reinterpret_cast<Complex<T>*>(scratch()); }

    // The spectra of a group's filters: a row for each channel that is summed over, a column for each of the result.
    void transform_filters(Team& team, const T* weight, T* spectra) const {
        const int64_t lanes = kLanes<T>, filter = taps() * plan_.channels;
        const Offsets at = filter_offsets(forward_ ? lanes : plan_.channels, forward_);
        team.share(ceil_div(in_, lanes) * right_.vectors, [&](int64_t item) {
            const int64_t row = item / right_.vectors * lanes, v = item % right_.vectors;
            const int64_t rows = smaller(lanes, in_ - row), filled = smaller(lanes, out_ - v * lanes);
            T* turned = scratch() + tile_vectors(plan_.size) * lanes;
            if (forward_) turn(weight + v * lanes * filter + row, filled, rows, turned);
            for (int64_t i = 0; i < rows; ++i) {
                const T* from = forward_ ? turned + i * taps() * lanes : weight + (row + i) * filter + v * lanes;
                T* to = spectra + (row + i) * right_.row_stride + v * 2 * lanes;
                transform_.forward({from, at.rows, at.columns, forward_ ? lanes : filled}, work(),
                                   {to, right_.stride, right_.row_stride});
            }
        });
    }

    // to[channel][tap][filter] of the taps of up to kLanes filters and channels, zero beyond the last filter.
    void turn(const T* weight, int64_t filters, int64_t channels, T* to) const {
        const int64_t lanes = kLanes<T>;
        for (int64_t tap = 0; tap < taps(); ++tap)
            for (int64_t k = 0; k < lanes; ++k)
                for (int64_t c = 0; c < channels; ++c)
                    to[(c * taps() + tap) * lanes + k] =
                        k < filters ? weight[(k * taps() + tap) * plan_.channels + c] : T{0};
    }

    // The spectra of `count` tiles from `first` on: a row for each tile, a column for each channel.
    void transform_tiles(Team& team, const Plane<const T>& plane, const Placement& placement, int64_t channels,
                         int64_t first, int64_t count, const SpectraLayout& layout, T* spectra) const {
        const int64_t lanes = kLanes<T>, vectors = vectors_of<T>(channels);
        team.share(count * vectors, [&](int64_t item) {
            const int64_t i = item / vectors, v = item % vectors, filled = smaller(lanes, channels - v * lanes);
            Offsets at;
            const T* image = tile_of(plan_, first + i, plane, placement, &at);
            T* to = spectra + i * layout.row_stride + v * 2 * lanes;
            transform_.forward({image + v * lanes, at.rows, at.columns, filled}, work(),
                               {to, layout.stride, 2 * lanes});
        });
    }

    void correlate(Team& team, const Plane<const T>& from, const T* filters, const Plane<T>& to, const T* bias) const {
        // Mirrored filters reach ahead, and the results are right from the tile's first on; others reach back, and the
        // first results are not.
        const int64_t reach_h = plan_.filter_h - 1, reach_w = plan_.filter_w - 1;
        const Placement source = forward_ ? around_results(plan_, s_.padding_h, s_.padding_w)
                                          : around_results(plan_, reach_h - s_.padding_h, reach_w - s_.padding_w);
        const Placement target = {{0, plan_.tile_h, forward_ ? 0 : reach_h}, {0, plan_.tile_w, forward_ ? 0 : reach_w}};
        for (int64_t first = 0; first < plan_.tiles; first += plan_.block) {
            const int64_t count = smaller(plan_.block, plan_.tiles - first);
            transform_tiles(team, from, source, in_, first, count, left_, left_data_);
            multiply_block(team, count, filters);
            write_tiles(team, to, target, bias, first, count);
        }
    }

    // At each frequency tiles x channels times channels x filters; the results take the place of the tiles.
    void multiply_block(Team& team, int64_t count, const T* filters) const {
        const int64_t last = frequencies(plan_.size) - 1;
        team.share(last + 1, [&](int64_t f) {
            const int64_t next = f < last ? f + 1 : f;
            T* tiles = left_data_ + f * left_.stride;
            product<T>({tiles, count, vectors_of<T>(in_), left_.row_stride}, false,
                       {filters + f * right_.stride, in_, right_.vectors, right_.row_stride},
                       {tiles, count, right_.vectors, left_.row_stride}, false, left_data_ + next * left_.stride,
                       filters + next * right_.stride, scratch());
        });
    }

    void write_tiles(Team& team, const Plane<T>& plane, const Placement& placement, const T* bias, int64_t first,
                     int64_t count) const {
        const int64_t lanes = kLanes<T>;
        team.share(count * right_.vectors, [&](int64_t item) {
            const int64_t i = item / right_.vectors, v = item % right_.vectors;
            const int64_t filled = smaller(lanes, out_ - v * lanes);
            Offsets at;
            T* image = tile_of(plan_, first + i, plane, placement, &at);
            const Vector<T> add = bias ? load_some(bias + v * lanes, filled) : Vector<T>{};
            const T* from = left_data_ + i * left_.row_stride + v * 2 * lanes;
            transform_.inverse({from, left_.stride, 2 * lanes}, work(), add,
                               {image + v * lanes, at.rows, at.columns, filled});
        });
    }

    // The spectra of the weight's gradient, at each frequency filters x tiles times tiles x channels: a row for each
    // filter, a column for each channel.
    void sum_gradient(Team& team, const Plane<const T>& gradients, const Plane<const T>& images,
                      T* right_data) const {
        const Placement mirrored = {{0, plan_.tile_h, 0, true}, {0, plan_.tile_w, 0, true}};
        const Placement around = around_results(plan_, s_.padding_h, s_.padding_w);
        const int64_t last = frequencies(plan_.size) - 1;
        for (int64_t first = 0; first < plan_.tiles; first += plan_.block) {
            const int64_t count = smaller(plan_.block, plan_.tiles - first);
            transform_tiles(team, gradients, mirrored, in_, first, count, left_, left_data_);
            transform_tiles(team, images, around, out_, first, count, right_, right_data);
            team.share(last + 1, [&](int64_t f) {
                const int64_t next = f < last ? f + 1 : f;
                product<T>({left_data_ + f * left_.stride, count, left_.vectors, left_.row_stride}, true,
                           {right_data + f * right_.stride, count, right_.vectors, right_.row_stride},
                           {result_data_ + f * result_.stride, in_, result_.vectors, result_.row_stride}, first > 0,
                           left_data_ + next * left_.stride, right_data + next * right_.stride, scratch());
            });
        }
    }

    void write_gradient(Team& team, T* weight) const {
        const int64_t lanes = kLanes<T>;
        const Offsets at = filter_offsets(plan_.channels, false);
        team.share(in_ * result_.vectors, [&](int64_t item) {
            const int64_t k = item / result_.vectors, v = item % result_.vectors;
            const T* from = result_data_ + k * result_.row_stride + v * 2 * lanes;
            T* to = weight + k * taps() * plan_.channels + v * lanes;
            transform_.inverse({from, result_.stride, 2 * lanes}, work(), Vector<T>{},
                               {to, at.rows, at.columns, smaller(lanes, out_ - v * lanes)});
        });
    }

    const ConvShape s_;
    const Plan plan_;
    const TileTransform<T>& transform_;
    const bool forward_, weight_;
    const int64_t in_, out_;  // channels of the left matrix of the products, and of the right one and the result
    SpectraLayout left_ = {}, right_ = {}, result_ = {};
    int64_t scratch_;  // elements of temporary memory of a thread
    T *left_data_ = nullptr, *result_data_ = nullptr, *scratch_data_ = nullptr;
};

template <typename T>
void run(const ConvCall& call) {
    FftConvolution<T>(call.shape, call.direction).run(call);
}

// Whether any tap of any result falls on an element, along one axis: with strides, dilation and padding it may be none.
bool meets(int64_t extent, int64_t results, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    for (int64_t y = 0; y < results; ++y)
        for (int64_t i = 0; i < kernel; ++i) {
            const int64_t place = y * stride - padding + i * dilation;
            if (place >= 0 && place < extent) return true;
        }
    return false;
}

const char* refuses(const ConvShape& s, Direction direction) {
    // The rounding of what is dropped would show where there is nothing else.
    if (!meets(s.height, s.out_h, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h) ||
        !meets(s.width, s.out_w, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w))
        return "no tap of the filter ever falls on the image";
    if (plan_of(s, direction).size == 0) return "the filter, with its dilation, is larger than 48";
    const FftConvolution<float> convolution(s, direction);
    if (convolution.spectra_elements(false) > (int64_t{2} << 30) / 4) return "its spectra would need more than 2 GiB";
    return nullptr;
}

int64_t workspace(const ConvShape& s, Direction direction, int size, int threads, bool prepared) {
    if (size == 4) return FftConvolution<float>(s, direction).elements(threads, prepared) * 4;
    return FftConvolution<double>(s, direction).elements(threads, prepared) * 8;
}

int64_t prepared_bytes(const ConvShape& s, int size) {
    if (size == 4) return FftConvolution<float>(s, Direction::forward).prepared_elements() * 4;
    return FftConvolution<double>(s, Direction::forward).prepared_elements() * 8;
}

template <typename T>
void prepare(const ConvShape& s, const void* weight, void* prepared, int threads) {
    FftConvolution<T>(s, Direction::forward).prepare(static_cast<const T*>(weight), static_cast<T*>(prepared), threads);
}

double waste(const ConvShape& s) { return static_cast<double>(s.stride_h * s.stride_w - 1); }

}  // namespace

extern const Algorithm fft = {"fft",          refuses,        workspace,       run<float>, run<double>,
                              prepared_bytes, prepare<float>, prepare<double>, waste};

}  // namespace engine::ENGINE_ISA
