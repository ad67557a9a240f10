// Convolution as a matrix product, the way it is taught (Stanford's CS231n, "Convolutional networks", section
// "Implementation as matrix multiplication"; the idea is of Chellapilla, Puri and Simard, 2006).
//
// im2col unfolds an image into a matrix: one row for every place of the kernel, holding the pixels under it. Then
//
//     forward          output                    = unfolded           x weight transposed
//     backward_input   gradient of the unfolded  = gradient of output x weight,  folded back into the image (col2im)
//     backward_weight  gradient of weight        = gradient of output transposed x unfolded,  added up over images
//
// The matrix of one image and one group of channels exists at a time. Its copies of every pixel, kernel_h * kernel_w
// of them, are what makes the method slow where memory is; `implicit` is the same product without the matrix.
#include "../convolution.h"
#include "matrix_product.h"

namespace engine::ENGINE_ISA {
namespace {

// Rows and columns of the matrix, and what they are made of, for one group of one image.
struct Unfolding {
    explicit Unfolding(const ConvShape& shape)
        : s(shape),
          channels(s.channels / s.groups),
          filters(s.filters / s.groups),
          places(s.out_h * s.out_w),
          window(s.kernel_h * s.kernel_w * channels) {}

    const ConvShape& s;
    const int64_t channels, filters;  // of one group
    const int64_t places, window;     // rows and columns of the matrix

    // The pixel under tap (i, j) of the kernel at the place (y, x), or null where that is padding.
    template <typename T>
    T* pixel(T* image, int64_t y, int64_t x, int64_t i, int64_t j) const {
        const int64_t row = y * s.stride_h - s.padding_h + i * s.dilation_h;
        const int64_t column = x * s.stride_w - s.padding_w + j * s.dilation_w;
        if (row < 0 || row >= s.height || column < 0 || column >= s.width) return nullptr;
        return image + (row * s.width + column) * s.channels;
    }

    // matrix[places][window] = the windows of `image`, which points at the group's first channel.
    template <typename T>
    void im2col(const T* image, T* matrix, int threads) const {
        share(threads, s.out_h, [&](int64_t y) {
            T* to = matrix + y * s.out_w * window;
            for (int64_t x = 0; x < s.out_w; ++x)
                for (int64_t i = 0; i < s.kernel_h; ++i)
                    for (int64_t j = 0; j < s.kernel_w; ++j, to += channels) {
                        const T* from = pixel(image, y, x, i, j);
                        for (int64_t c = 0; c < channels; ++c) to[c] = from ? from[c] : 0;
                    }
        });
    }

    // image = for every pixel the sum of its copies in the matrix. Threads share the rows of the image and every
    // one gathers what belongs to its own, so no two ever add to one pixel.
    template <typename T>
    void col2im(const T* matrix, T* image, int threads) const {
        share(threads, s.height, [&](int64_t row) {
            for (int64_t column = 0; column < s.width; ++column)
                for (int64_t c = 0; c < channels; ++c) image[(row * s.width + column) * s.channels + c] = 0;
            for (int64_t i = 0; i < s.kernel_h; ++i) {
                const int64_t y = (row + s.padding_h - i * s.dilation_h) / s.stride_h;
                if (y < 0 || y >= s.out_h || y * s.stride_h != row + s.padding_h - i * s.dilation_h) continue;
                for (int64_t x = 0; x < s.out_w; ++x)
                    for (int64_t j = 0; j < s.kernel_w; ++j) {
                        T* to = pixel(image, y, x, i, j);
                        if (!to) continue;
                        const T* from = matrix + (y * s.out_w + x) * window + (i * s.kernel_w + j) * channels;
                        for (int64_t c = 0; c < channels; ++c) to[c] += from[c];
                    }
            }
        });
    }
};

template <typename T>
void forward(const ConvCall& call, const Unfolding& u) {
    const ConvShape& s = call.shape;
    T *matrix = static_cast<T*>(call.workspace), *panels = matrix + u.places * u.window;
    for (int64_t group = 0; group < s.groups; ++group) {
        const T* weight = static_cast<const T*>(call.right) + group * u.filters * u.window;
        pack(weight, u.window, u.filters, 1, u.window, panels, call.threads);  // transposed
        for (int64_t n = 0; n < s.batch; ++n) {
            const T* image = static_cast<const T*>(call.left) + n * s.height * s.width * s.channels;
            T* out = static_cast<T*>(call.out) + n * u.places * s.filters + group * u.filters;
            u.im2col(image + group * u.channels, matrix, call.threads);
            product(u.places, u.filters, u.window, matrix, u.window, panels, false, out, s.filters, call.threads);
        }
    }
    if (!call.bias) return;
    const T* bias = static_cast<const T*>(call.bias);
    T* out = static_cast<T*>(call.out);
    share(call.threads, s.batch * u.places, [&](int64_t place) {
        for (int64_t k = 0; k < s.filters; ++k) out[place * s.filters + k] += bias[k];
    });
}

template <typename T>
void backward_input(const ConvCall& call, const Unfolding& u) {
    const ConvShape& s = call.shape;
    T *matrix = static_cast<T*>(call.workspace), *panels = matrix + u.places * u.window;
    for (int64_t group = 0; group < s.groups; ++group) {
        const T* weight = static_cast<const T*>(call.right) + group * u.filters * u.window;
        pack(weight, u.filters, u.window, u.window, 1, panels, call.threads);
        for (int64_t n = 0; n < s.batch; ++n) {
            const T* gradient = static_cast<const T*>(call.left) + n * u.places * s.filters + group * u.filters;
            T* image = static_cast<T*>(call.out) + n * s.height * s.width * s.channels;
            product(u.places, u.window, u.filters, gradient, s.filters, panels, false, matrix, u.window, call.threads);
            u.col2im(matrix, image + group * u.channels, call.threads);
        }
    }
}

template <typename T>
void backward_weight(const ConvCall& call, const Unfolding& u) {
    const ConvShape& s = call.shape;
    T *matrix = static_cast<T*>(call.workspace), *panels = matrix + u.places * u.window;
    T* transposed = panels + panels_elements(u.places, u.window, kPanel<T>);  // [filters][places]
    for (int64_t group = 0; group < s.groups; ++group)
        for (int64_t n = 0; n < s.batch; ++n) {
            const T* image = static_cast<const T*>(call.right) + n * s.height * s.width * s.channels;
            const T* gradient = static_cast<const T*>(call.left) + n * u.places * s.filters + group * u.filters;
            T* out = static_cast<T*>(call.out) + group * u.filters * u.window;
            u.im2col(image + group * u.channels, matrix, call.threads);
            pack(matrix, u.places, u.window, u.window, 1, panels, call.threads);
            share(call.threads, u.filters, [&](int64_t k) {
                for (int64_t place = 0; place < u.places; ++place)
                    transposed[k * u.places + place] = gradient[place * s.filters + k];
            });
            product(u.filters, u.window, u.places, transposed, u.places, panels, n > 0, out, u.window, call.threads);
        }
}

template <typename T>
void run(const ConvCall& call) {
    const Unfolding u(call.shape);
    if (call.direction == Direction::forward) return forward<T>(call, u);
    if (call.direction == Direction::backward_input) return backward_input<T>(call, u);
    backward_weight<T>(call, u);
}

int64_t workspace(const ConvShape& s, Direction direction, int size, int, bool) {
    const Unfolding u(s);
    const int64_t panel = size == 4 ? kPanel<float> : kPanel<double>, matrix = u.places * u.window;
    if (direction == Direction::forward) return size * (matrix + panels_elements(u.window, u.filters, panel));
    if (direction == Direction::backward_input) return size * (matrix + panels_elements(u.filters, u.window, panel));
    return size * (matrix + panels_elements(u.places, u.window, panel) + u.filters * u.places);
}

const char* refuses(const ConvShape&, Direction) { return nullptr; }

}  // namespace

extern const Algorithm im2col = {"im2col", refuses, workspace, run<float>, run<double>,
                                 nullptr,  nullptr, nullptr,   nullptr};

}  // namespace engine::ENGINE_ISA
