// Networks of one bit, as every device computes them: a bit is +1 (set) or -1 (clear), and there is no zero.
//
// A row of k bits is ceil(k / 32) words of 32 bits, bit i of the row in bit i % 32 of word i / 32; the bits behind the
// last are clear. Activations are [batch][height][width][words of the channels]; a linear layer's are those of one
// pixel. A product of two rows is the number of bits that agree less the number that differ, k - 2 popcount(a xor b)
// (Courbariaux et al., "Binarized neural networks", 2016; Rastegari et al., "XNOR-Net", 2016), so every sum is exact.
//
// Weights are laid out in panels of 32 filters, filters that are missing in the last panel as clear bits:
//   of bits   [panel][pairs][2][32]: for each two successive words u, v of a filter, u and u xor v, for 32 filters. The
//             words of a filter are those of [kernel_h][kernel_w][words of the channels], and a clear one to be even.
//             With u xor v at hand two words need one carry-save adder and one popcount.
//   of bytes  [panel][quads][4]: for each four successive bytes of the input, a bit for each filter and byte, 4 * filter
//             + byte, set where the weight is -1. A filter's are those of [kernel_h][kernel_w][channels], and then +1.
#pragma once

#include <cstdint>

namespace engine {

constexpr int kPanel = 32;  // filters

struct BinaryConvolution {
    int64_t batch, height, width, channels;
    int64_t filters, kernel_h, kernel_w;
    int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
    int64_t out_h, out_w;  // follow from the rest
    int64_t padding;       // what stands beyond the border: of bits 0 (-1) or 1 (+1), of bytes their value
};

// Where sums go: into integers [rows][filters]; or, given thresholds, into bits [rows][words of the filters] that say
// whether a sum is at least its filter's threshold, inverted where the filter's bit of `inverted` is set. Thresholds
// and `inverted` go on to the end of the last panel, there with the largest integer and clear bits.
struct BinaryOutput {
    int32_t* sums;
    uint32_t* bits;
    const int32_t* thresholds;
    const uint32_t* inverted;
};

// Null if the sizes make a convolution with at least one output whose sums and bytes can be counted, else why not.
const char* mistake(const BinaryConvolution& shape, bool bytes);

}  // namespace engine
