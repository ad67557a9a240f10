// Implicit matrix product: the product of im2col without its matrix. All three directions of any shape.
//
// Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014, build the unfolded matrix tile by tile in
// fast memory; Dukhan, "The indirect convolution algorithm", 2019, is the same idea on CPUs. See implicit_product.h
// for forward and backward_input and implicit_weight.h for backward_weight.
#include "implicit_product.h"
#include "implicit_weight.h"

namespace engine::ENGINE_ISA {
namespace {

// Where a weight's elements lie, seen from the forward correlation and from the one with the kernel turned round.
WeightLayout weight_layout(const ConvShape& s, Direction direction) {
    const int64_t channels = s.channels / s.groups, filter = s.kernel_h * s.kernel_w * channels;
    const int64_t group = s.filters / s.groups * filter;
    if (direction == Direction::forward) return {group, channels, 1, filter, s.kernel_w};
    return {group, channels, filter, 1, s.kernel_w};
}

template <typename T>
void forward(const ConvCall& call) {
    const Correlation c = forward_correlation(call.shape);
    const T *left = static_cast<const T*>(call.left), *bias = static_cast<const T*>(call.bias);
    with_team(call.threads, [&](Team& team) {
        const T* panels = static_cast<const T*>(call.prepared);
        if (!panels) {
            T* packed = static_cast<T*>(call.workspace);
            pack_panels(team, c, weight_layout(call.shape, call.direction), static_cast<const T*>(call.right), packed);
            panels = packed;
        }
        Product<T>{c, left, panels, bias, static_cast<T*>(call.out)}.all(team);
    });
}

template <typename T>
void backward_input(const ConvCall& call) {
    const ConvShape& s = call.shape;
    const T *left = static_cast<const T*>(call.left), *weight = static_cast<const T*>(call.right);
    T *packed = static_cast<T*>(call.workspace), *out = static_cast<T*>(call.out);
    with_team(call.threads, [&](Team& team) {
        for (int64_t y = 0; y < s.stride_h; ++y)
            for (int64_t x = 0; x < s.stride_w; ++x) {
                const Correlation c = backward_correlation(s, y, x);
                if (c.results() == 0) continue;
                pack_panels(team, c, weight_layout(s, call.direction), weight, packed);
                Product<T>{c, left, packed, nullptr, out}.all(team);
            }
    });
}

template <typename T>
WeightGradient<T> weight_gradient(const ConvShape& s, const void* gradient, const void* images, void* out,
                                  void* workspace) {
    return {forward_correlation(s), static_cast<const T*>(gradient), static_cast<const T*>(images),
            static_cast<T*>(out), static_cast<T*>(workspace)};
}

template <typename T>
void run(const ConvCall& call) {
    switch (call.direction) {
        case Direction::forward:
            return forward<T>(call);
        case Direction::backward_input:
            return backward_input<T>(call);
        case Direction::backward_weight:
            return weight_gradient<T>(call.shape, call.left, call.right, call.out, call.workspace).all(call.threads);
    }
}

template <typename T>
int64_t workspace_of(const ConvShape& s, Direction direction, int threads) {
    if (direction == Direction::forward) return panel_elements<T>(forward_correlation(s));
    if (direction == Direction::backward_weight)
        return weight_gradient<T>(s, nullptr, nullptr, nullptr, nullptr).workspace_elements(threads);
    int64_t most = 0;
    for (int64_t y = 0; y < s.stride_h; ++y)
        for (int64_t x = 0; x < s.stride_w; ++x)
            most = larger(most, panel_elements<T>(backward_correlation(s, y, x)));
    return most;
}

int64_t workspace(const ConvShape& s, Direction direction, int size, int threads, bool prepared) {
    if (prepared) return 0;
    if (size == 4) return 4 * workspace_of<float>(s, direction, threads);
    return 8 * workspace_of<double>(s, direction, threads);
}

int64_t prepared_bytes(const ConvShape& s, int size) { return workspace(s, Direction::forward, size, 1, false); }

template <typename T>
void prepare(const ConvShape& s, const void* weight, void* prepared, int threads) {
    with_team(threads, [&](Team& team) {
        pack_panels(team, forward_correlation(s), weight_layout(s, Direction::forward), static_cast<const T*>(weight),
                    static_cast<T*>(prepared));
    });
}

const char* refuses(const ConvShape&, Direction) { return nullptr; }

}  // namespace

extern const Algorithm implicit = {"implicit",     refuses,         workspace,        run<float>, run<double>,
                                   prepared_bytes, prepare<float>, prepare<double>, nullptr};

}  // namespace engine::ENGINE_ISA
