// Which pixels of an axis make up one of its places, and how much each of them counts: csrc/images.h says it.
#pragma once

#include "../../images.h"
#include "../../simd/vector.h"

namespace engine::ENGINE_ISA {
namespace {

inline double floor_of(double number) { return __builtin_floor(number); }

// Whether every place is one pixel, unfiltered.
inline bool exact(const Axis& axis) { return axis.scale == 1 && axis.origin == floor_of(axis.origin); }

inline int64_t within(int64_t number, int64_t first, int64_t last) {
    return number < first ? first : number >= last ? last - 1 : number;
}

// A place outside of [first, last) mirrored about the first and the last pixel, as often as it takes.
inline int64_t reflected(int64_t place, int64_t first, int64_t last) {
    if (place >= first && place < last) return place;
    const int64_t period = 2 * (last - first - 1);
    if (period == 0) return first;
    int64_t distance = (place - first) % period;
    if (distance < 0) distance += period;
    return first + (2 * distance <= period ? distance : period - distance);
}

// The filter around one place. Weights are in float64 until they are normalised.
class Taps {
public:
    int64_t first, count;

    Taps(const Axis& axis, int64_t place) {
        const auto begin = static_cast<int64_t>(axis.first), end = static_cast<int64_t>(axis.last);
        if (exact(axis)) {
            one(within(static_cast<int64_t>(axis.origin) + place, begin, end));
            return;
        }
        position_ = axis.origin + (static_cast<double>(place) + 0.5) * axis.scale;
        const double support = axis.scale > 1 ? axis.scale : 1;
        first = larger(begin, static_cast<int64_t>(floor_of(position_ - support - 0.5)) + 1);
        const int64_t stop = smaller(end, -static_cast<int64_t>(floor_of(0.5 - position_ - support)));
        count = stop - first;
        slope_ = 1 / support;
        double sum = 0;
        for (int64_t tap = 0; tap < count; ++tap) sum += triangle(tap);
        if (sum > 0)
            share_ = 1 / sum;
        else
            one(within(static_cast<int64_t>(floor_of(position_)), begin, end));
    }

    float weight(int64_t tap) const { return static_cast<float>(triangle(tap) * share_); }

private:
    double position_, slope_, share_ = 1;

    void one(int64_t pixel) {
        first = pixel;
        count = 1;
        position_ = static_cast<double>(pixel) + 0.5;
        slope_ = 1;
    }

    double triangle(int64_t tap) const {
        const double distance = static_cast<double>(first + tap) + 0.5 - position_;
        const double height = 1 - (distance < 0 ? -distance : distance) * slope_;
        return height > 0 ? height : 0;
    }
};

// An axis's places [low, high), or where it is reflected all of them, as they lie in the output: counted from the
// other end if it is mirrored.
struct Places {
    int64_t low, high, size;
    bool mirrored;

    Places(const Axis& axis, int64_t size, bool everywhere, bool mirrored) : size(size), mirrored(mirrored) {
        const int64_t begin = everywhere ? 0 : static_cast<int64_t>(axis.low);
        const int64_t end = everywhere ? size : static_cast<int64_t>(axis.high);
        low = mirrored ? size - end : begin;
        high = mirrored ? size - begin : end;
    }
    int64_t before_mirroring(int64_t place) const { return mirrored ? size - 1 - place : place; }
    bool shows(int64_t place) const { return place >= low && place < high; }
};

}  // namespace
}  // namespace engine::ENGINE_ISA
