// Local response normalisation across channels, as every device does it (Krizhevsky, Sutskever and Hinton, "ImageNet
// classification with deep convolutional neural networks", NIPS 2012, section 3.3).
//
//   s[c] = k + scale * (x[c - below]^2 + ... + x[c + above]^2)     channels that are not there count as 0
//   out[c] = x[c] / s[c]^beta
//
// and backward, for a gradient d of out,
//
//   out[c] = d[c] / s[c]^beta - 2 beta scale x[c] * (g[c - above] + ... + g[c + below])
//   g[c] = d[c] x[c] / s[c]^(beta + 1)
//
// at every place by itself. Backward computes s again, so that nothing but x has to be kept for it.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>

namespace engine {

struct LrnCall {
    int64_t images, channels, places;
    int64_t innermost;     // memory is [images][places][channels] if not 0, else [images][channels][places]
    int64_t below, above;  // channels of a window beside its own; each less than `channels`
    double scale, beta, k;
    const void* x;
    const void* gradient;  // null: forward
    void* out;             // apart from the others
    void* workspace;       // of a device that needs some
};

// A call from the numbers that Python passes. sizes: the first six fields. constants: scale, beta and k. arrays:
// addresses of x, gradient, out and workspace; 0: there is none.
inline LrnCall lrn_call(const std::array<int64_t, 6>& sizes, const std::array<double, 3>& constants,
                        const std::array<std::uintptr_t, 4>& arrays) {
    for (int64_t size : sizes)
        if (size < 0) throw std::invalid_argument("a size is negative");
    if (sizes[1] > 0 && (sizes[4] >= sizes[1] || sizes[5] >= sizes[1]))
        throw std::invalid_argument("a window reaches beyond all channels");
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], constants[0], constants[1], constants[2],
            reinterpret_cast<const void*>(arrays[0]), reinterpret_cast<const void*>(arrays[1]),
            reinterpret_cast<void*>(arrays[2]), reinterpret_cast<void*>(arrays[3])};
}

inline void check_lrn_element(int bytes) {
    if (bytes != 4 && bytes != 8) throw std::invalid_argument("an element has 4 or 8 bytes");
}

}  // namespace engine
