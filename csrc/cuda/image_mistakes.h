// Why a pass cannot be done: what would have the kernels read or write outside of their arrays, or divide by nothing.
#pragma once

#include <cmath>

#include "../images.h"

namespace engine {
namespace cuda {
namespace {

constexpr double kMostPixels = double(1 << 20);  // of an axis, in or out, so that its places are numbers of 32 bits

inline bool whole(double number) { return std::floor(number) == number; }  // false for what is no number

inline const char* mistake(const Axis& axis, int64_t size, int64_t places, bool reflects) {
    if (!(std::fabs(axis.origin) <= 64 * kMostPixels) || !(axis.scale > 0) || !(axis.scale <= kMostPixels))
        return "an axis's origin or scale is out of range";
    if (!whole(axis.first) || !whole(axis.last) || axis.first < 0 || axis.last < axis.first ||
        axis.last > double(size))
        return "an axis reads beyond the image";
    const bool exact = axis.scale == 1 && whole(axis.origin);
    if (reflects) return exact && axis.first < axis.last ? nullptr : "a reflected image cannot be resized";
    if (!whole(axis.low) || !whole(axis.high) || axis.low < 0 || axis.high < axis.low || axis.high > double(places))
        return "an axis shows more than the output has";
    if (axis.low == axis.high) return nullptr;
    if (exact && (axis.origin + axis.low < axis.first || axis.origin + axis.high > axis.last))
        return "an axis shows pixels that it does not read";
    // A quarter of a pixel for rounding: some pixel is then near enough to have a weight.
    if (axis.first == axis.last || axis.origin + (axis.low + 0.5) * axis.scale < axis.first - 0.25 ||
        axis.origin + (axis.high - 0.5) * axis.scale > axis.last + 0.25)
        return "an axis shows places outside of the pixels that it reads";
    return nullptr;
}

inline const char* mistake(const ImagePass& pass, int64_t height, int64_t width) {
    const double most = kMostPixels;
    if (pass.images < 1 || pass.images > INT32_MAX || pass.changes < 0 || pass.changes > 4096 || pass.boxes < 0 ||
        pass.boxes > INT32_MAX)
        return "the pass has a number of images, changes or boxes that cannot be";
    if (pass.channels != 1 && pass.channels != 3) return "images have 1 or 3 channels";
    if (height < 1 || width < 1 || pass.height < 1 || pass.width < 1 || double(height) > most ||
        double(width) > most || double(pass.height) > most || double(pass.width) > most)
        return "heights and widths must be from 1 to 2^20";
    if (pass.height * pass.width > (int64_t{1} << 30)) return "an image of the output has more than 2^30 pixels";
    if (pass.output < kBytes || pass.output > kBFloat16) return "the output is bytes, float32 or bfloat16";
    if (pass.border != kFilled && pass.border != kReflected) return "a border is filled or reflected";
    if (pass.output == kBytes && pass.changes > 0) return "colours are changed in floats, not in bytes";
    for (float value : pass.fill)
        if (!(value >= 0 && value <= 255)) return "a border's colour is from 0 to 255";
    for (int64_t image = 0; image < pass.images; ++image) {
        const Axis* axes = pass.axes + 2 * image;
        const bool reflects = pass.border == kReflected;
        if (const char* reason = mistake(axes[0], height, pass.height, reflects)) return reason;
        if (const char* reason = mistake(axes[1], width, pass.width, reflects)) return reason;
    }
    for (int64_t number = 0; number < pass.images * pass.changes; ++number) {
        const int32_t kind = pass.kinds[number] & ~kClipped;
        if (kind < kNothing || kind > kHue) return "the change of colour is unknown";
    }
    return nullptr;
}

}  // namespace
}  // namespace cuda
}  // namespace engine
