// Which pixels of an axis make up one of its places, and how much each of them counts: csrc/images.h says it.
#pragma once

#include "../images.h"
#include "device.h"

namespace engine {
namespace cuda {
namespace {

// Pixels [first, first + count); the weights are not divided by their sum.
struct Taps {
    int first, count;
    float offset, slope;  // from the position to the middle of the first pixel; 1 / the filter's half width

    __device__ __forceinline__ float weight(int tap) const {
        return fmaxf(0.0f, 1.0f - fabsf(offset + float(tap)) * slope);
    }
};

__device__ __forceinline__ bool shows(const Axis& axis, int place) {
    return place >= int(axis.low) && place < int(axis.high);
}

// A pixel outside of [first, last) mirrored about the first and the last one, as often as it takes.
__device__ __forceinline__ int reflected(int pixel, int first, int last) {
    const int period = 2 * (last - 1 - first);
    if (period == 0) return first;
    int distance = (pixel - first) % period;
    if (distance < 0) distance += period;
    return first + (2 * distance <= period ? distance : period - distance);
}

// A place that is shown, or any one where the border is reflected. Positions are in double, since an error of a float's
// last bit far from 0 would change grey levels; what is left of them near the place is small.
__device__ __forceinline__ Taps taps_at(const Axis& axis, int place, bool reflects) {
    const int begin = int(axis.first), end = int(axis.last);
    if (axis.scale == 1 && axis.origin == floor(axis.origin)) {
        const int pixel = int(axis.origin) + place;
        return {reflects ? reflected(pixel, begin, end) : pixel, 1, 0.0f, 1.0f};
    }
    const double position = axis.origin + (place + 0.5) * axis.scale, support = axis.scale > 1 ? axis.scale : 1;
    int first = int(floor(position - support - 0.5)) + 1, stop = -int(floor(0.5 - position - support));
    if (first < begin) first = begin;
    if (stop > end) stop = end;
    return {first, stop - first, float(first + 0.5 - position), 1.0f / float(support)};
}

}  // namespace
}  // namespace cuda
}  // namespace engine
