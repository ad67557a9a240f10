// Why a picture or a pass over it cannot be had: what would read or write outside of its memory.
#pragma once

#include <cmath>

#include "pictures.h"

namespace engine {
namespace {

constexpr int64_t kMostBytes = int64_t{1} << 40;
constexpr int64_t kMostPixels = int64_t{1} << 20;  // of an axis, in or out: what it is made of fits in 32 bits

inline bool whole(double number) { return std::floor(number) == number; }  // false for what is no number

// Why what the axis says of an image's `size` pixels and `places` of the output cannot be done, or null.
inline const char* mistake(const Axis& axis, int64_t size, int64_t places, bool is_reflected) {
    const double most = static_cast<double>(kMostPixels);
    if (!(std::fabs(axis.origin) <= 64 * most) || !(axis.scale > 0) || !(axis.scale <= most))
        return "an axis's origin or scale is out of range";
    if (!whole(axis.first) || !whole(axis.last) || axis.first < 0 || axis.last < axis.first ||
        axis.last > static_cast<double>(size))
        return "an axis reads beyond the image";
    const bool exact = axis.scale == 1 && whole(axis.origin);
    if (is_reflected) return exact && axis.first < axis.last ? nullptr : "a reflected image cannot be resized";
    if (!whole(axis.low) || !whole(axis.high) || axis.low < 0 || axis.high < axis.low ||
        axis.high > static_cast<double>(places))
        return "an axis shows more than the output has";
    if (axis.low == axis.high) return nullptr;
    if (exact && (axis.origin + axis.low < axis.first || axis.origin + axis.high > axis.last))
        return "an axis shows pixels that it does not read";
    // A quarter of a pixel for rounding: some pixel is then near enough to have a weight.
    if (axis.origin + (axis.low + 0.5) * axis.scale < axis.first - 0.25 ||
        axis.origin + (axis.high - 0.5) * axis.scale > axis.last + 0.25 || axis.first == axis.last)
        return "an axis shows places outside of the pixels that it reads";
    return nullptr;
}

inline const char* mistake(const ImagePass& pass) {
    if (pass.images < 0 || pass.changes < 0 || pass.boxes < 0 || pass.changes > 4096)
        return "the pass has a negative number of images, changes or boxes";
    if (pass.channels != 1 && pass.channels != 3) return "images have 1 or 3 channels";
    if (pass.height < 1 || pass.width < 1 || pass.height > kMostPixels || pass.width > kMostPixels)
        return "the output's height and width must be from 1 to 2^20";
    if (pass.output < kBytes || pass.output > kBFloat16) return "the output is bytes, float32 or bfloat16";
    if (pass.border != kFilled && pass.border != kReflected) return "a border is filled or reflected";
    if (pass.output == kBytes && pass.changes > 0) return "colours are changed in floats, not in bytes";
    for (float value : pass.fill)
        if (!(value >= 0 && value <= 255)) return "a border's colour is from 0 to 255";
    return nullptr;
}

inline const char* mistake(const Picture& picture, const ImagePass& pass, int64_t image) {
    if (picture.height < 1 || picture.width < 1 || picture.height > kMostPixels || picture.width > kMostPixels)
        return "an image's height and width must be from 1 to 2^20";
    if (picture.encoding < kInterleaved || picture.encoding > kJpeg) return "the encoding is unknown";
    if (picture.bytes < 0 || picture.offset < 0) return "the record's size or offset is negative";
    if (picture.bytes > kMostBytes) return "the record is too large";
    if (picture.address == 0 && (picture.file < 0 || picture.file > INT32_MAX)) return "the descriptor is none";
    if (picture.encoding != kJpeg && picture.height * picture.width * pass.channels != picture.bytes)
        return "the record does not have as many bytes as the image has pixels";
    const bool is_reflected = pass.border == kReflected;
    const Axis* axes = pass.axes + 2 * image;
    if (const char* reason = mistake(axes[0], picture.height, pass.height, is_reflected)) return reason;
    if (const char* reason = mistake(axes[1], picture.width, pass.width, is_reflected)) return reason;
    for (int64_t change = 0; change < pass.changes; ++change) {
        const int32_t kind = pass.kinds[image * pass.changes + change] & ~kClipped;
        if (kind < kNothing || kind > kHue) return "the change of colour is unknown";
    }
    return nullptr;
}

}  // namespace
}  // namespace engine
