// What one pass over the pixels of a batch does: resample, mirror, pad, colour, erase, and lay out for a network.
//
// The CPU's code (csrc/cpu/images) and the GPU's (csrc/cuda/images.cu) compute the same from the same description. Each
// image is described alone, so what becomes of it never depends on the rest of its batch.
#pragma once

#include <cstdint>

namespace engine {

// One axis of one image. Positions are in pixels from the outer edge of the first one, so pixel j is [j, j + 1).
//
// Place i of the output, before it is mirrored, lies around the position origin + (i + 1/2) * scale of the source. Where
// scale is 1 and origin a whole number, it is that very pixel. Otherwise it is a mean of the pixels j of [first, last)
// with the weights max(0, 1 - |j + 1/2 - position| / max(scale, 1)), divided by their sum: bilinear, antialiased where
// the image becomes smaller, as Pillow's. Values are rounded to whole grey levels, halves to even ones. Places outside
// [low, high) are the border.
struct Axis {
    double origin, scale;
    double first, last;  // whole numbers: what may be read
    double low, high;    // whole numbers: places of the output that show the image
};

// What is beyond [low, high): a colour, or the image mirrored about the pixels first and last - 1, as often as needed
// (only where scale is 1 and origin a whole number in all images of the batch; low and high are then not used).
enum Border : int64_t { kFilled = 0, kReflected = 1 };

// Changes of colour, in numbers from 0 (black) to 1 (white), one after the other. Of images of one channel a
// saturation and a hue change nothing, and the mean is that of the channel.
enum Change : int32_t {
    kNothing = 0,
    kAffine = 1,      // 12 numbers, 3 rows of (r, g, b, 1): out = matrix * (r, g, b, 1); one channel: row 0's first, last
    kBrightness = 2,  // factor: out = factor * in
    kContrast = 3,    // factor: out = factor * in + (1 - factor) * mean over the image of 0.2989 r + 0.587 g + 0.114 b
    kSaturation = 4,  // factor: out = factor * in + (1 - factor) * (0.2989 r + 0.587 g + 0.114 b) of the same pixel
    kHue = 5,         // turn of HSV's hue, -1/2 to 1/2 of the circle, as torchvision's adjust_hue does with floats
    kClipped = 256,   // added to one of these: the result is clipped to 0..1
};

// Pixels of the output (after mirroring), and what they are set to after all changes of colour.
struct Erased {
    int32_t top, left, bottom, right;  // bottom and right exclusive; an empty box erases nothing
    float value[3];                    // of uint8 outputs 0..255, of others as it is
};

enum Output : int64_t { kBytes = 0, kFloat32 = 1, kBFloat16 = 2 };

// The whole pass. The arrays have an entry for each image; those of changes and boxes `changes` and `boxes` of them.
struct ImagePass {
    int64_t images, channels;  // 1 or 3 channels
    int64_t height, width;     // of the output
    int64_t output;            // Output; bytes: no changes, values as they are
    int64_t interleaved;       // 0: NCHW, 1: NHWC
    int64_t border;            // Border
    int64_t changes, boxes;
    float fill[3];           // the border's colour before all changes: whole numbers, 0..255
    const Axis* axes;        // [images][2]: down, right
    const uint8_t* mirrored;  // [images]: 1: mirrored left to right
    const int32_t* kinds;    // [images][changes]
    const float* factors;    // [images][changes][12]
    const Erased* erased;    // [images][boxes]
};

// Pixels of one image in memory: pixel (y, x, c) at y * row + x * column + c * channel.
struct Pixels {
    const uint8_t* memory;
    int64_t row, column, channel;
};

}  // namespace engine
