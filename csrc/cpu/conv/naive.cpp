// Convolution as its definition reads, one product after the other: the reference that the others are read against.
#include "../../simd/vector.h"
#include "../convolution.h"
#include "../team.h"

namespace engine::ENGINE_ISA {
namespace {

// Calls visit(image index, output index, weight index) for every product of the convolution's definition whose
// `fixed` coordinate (one image of the batch, or one filter) is `which`.
template <typename Visit>
ENGINE_INLINE void products(const ConvShape& s, int64_t image, int64_t filter, Visit visit) {
    const int64_t group_channels = s.channels / s.groups;
    const int64_t first_channel = filter / (s.filters / s.groups) * group_channels;
    for (int64_t y = 0; y < s.out_h; ++y)
        for (int64_t x = 0; x < s.out_w; ++x)
            for (int64_t i = 0; i < s.kernel_h; ++i)
                for (int64_t j = 0; j < s.kernel_w; ++j) {
                    const int64_t row = y * s.stride_h - s.padding_h + i * s.dilation_h;
                    const int64_t column = x * s.stride_w - s.padding_w + j * s.dilation_w;
                    if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
                    const int64_t pixel = ((image * s.height + row) * s.width + column) * s.channels + first_channel;
                    const int64_t output = ((image * s.out_h + y) * s.out_w + x) * s.filters + filter;
                    const int64_t tap = ((filter * s.kernel_h + i) * s.kernel_w + j) * group_channels;
                    for (int64_t c = 0; c < group_channels; ++c) visit(pixel + c, output, tap + c);
                }
}

template <typename T>
void run(const ConvCall& call) {
    const ConvShape& s = call.shape;
    const T* left = static_cast<const T*>(call.left);
    const T* right = static_cast<const T*>(call.right);
    const T* bias = static_cast<const T*>(call.bias);
    T* out = static_cast<T*>(call.out);
    // Threads share what is independent: images, or the filters whose gradient every image adds to.
    if (call.direction == Direction::backward_weight) {
        const int64_t size = s.kernel_h * s.kernel_w * (s.channels / s.groups);
        share(call.threads, s.filters, [&](int64_t k) {
            for (int64_t e = 0; e < size; ++e) out[k * size + e] = 0;
            for (int64_t n = 0; n < s.batch; ++n)
                products(s, n, k, [&](int64_t x, int64_t y, int64_t w) { out[w] += left[y] * right[x]; });
        });
        return;
    }
    const bool forward = call.direction == Direction::forward;
    const int64_t size = forward ? s.out_h * s.out_w * s.filters : s.height * s.width * s.channels;
    share(call.threads, s.batch, [&](int64_t n) {
        for (int64_t e = 0; e < size; ++e) out[n * size + e] = forward && bias ? bias[e % s.filters] : 0;
        for (int64_t k = 0; k < s.filters; ++k)
            if (forward)
                products(s, n, k, [&](int64_t x, int64_t y, int64_t w) { out[y] += left[x] * right[w]; });
            else
                products(s, n, k, [&](int64_t x, int64_t y, int64_t w) { out[x] += left[y] * right[w]; });
    });
}

const char* refuses(const ConvShape&, Direction) { return nullptr; }
int64_t workspace(const ConvShape&, Direction, int, int, bool) { return 0; }

}  // namespace

extern const Algorithm naive = {"naive", refuses, workspace, run<float>, run<double>,
                                nullptr, nullptr, nullptr,   nullptr};

}  // namespace engine::ENGINE_ISA
