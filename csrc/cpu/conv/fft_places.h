// Which elements of an array lie where in a tile: tables of offsets, for the rows and for the columns of a tile.
//
// Strides, dilations, padding and mirrored filters are all a matter of these tables; the transforms know of none.
#pragma once

#include "fft_plan.h"

namespace engine::ENGINE_ISA {
namespace {

// An NHWC array seen on a plane of places, of which only every step-th holds an element: so the results of a
// convolution with a stride lie on the plane of one without, and the taps of a dilated filter on that of a larger one.
template <typename Element>
struct Plane {
    Element* data;
    int64_t height, width, channels;
    int64_t step_h, step_w;
};

// Along one axis: `count` places from `first` on come into the tile, from position `start` on, forwards or (round the
// end of the tile) backwards.
struct Window {
    int64_t first, count;
    int64_t start = 0;
    bool backwards = false;
};

// The axis: `extent` elements, at the places that are multiples of `step`, `pitch` apart in memory.
struct Axis {
    int64_t extent, step, pitch;
};

// Offsets of the elements at the positions of a tile, -1 where there is none.
inline void lay(const Axis& axis, const Window& window, int64_t size, int64_t* offsets) {
    for (int64_t i = 0; i < size; ++i) offsets[i] = -1;
    for (int64_t i = larger(0, -window.first); i < window.count; ++i) {
        const int64_t place = window.first + i, element = axis.step == 1 ? place : place / axis.step;
        if (element >= axis.extent) break;
        if (element * axis.step != place) continue;
        offsets[(window.backwards ? size + window.start - i : window.start + i) % size] = element * axis.pitch;
    }
}

struct Offsets {
    int64_t rows[kLargestTile], columns[kLargestTile];
};

template <typename Element>
Offsets offsets_of(const Plane<Element>& plane, const Window& rows, const Window& columns, int64_t size) {
    Offsets offsets;
    lay({plane.height, plane.step_h, plane.width * plane.channels}, rows, size, offsets.rows);
    lay({plane.width, plane.step_w, plane.channels}, columns, size, offsets.columns);
    return offsets;
}

// How the places of every tile are chosen, relative to those of its results.
struct Placement {
    Window rows, columns;
};

// Images are read with what the filter reaches beyond the results.
inline Placement around_results(const Plan& plan, int64_t before_h, int64_t before_w) {
    return {{-before_h, plan.tile_h + plan.filter_h - 1}, {-before_w, plan.tile_w + plan.filter_w - 1}};
}

// One tile of the batch: where its image starts, and the offsets of its elements from there.
template <typename Element>
Element* tile_of(const Plan& plan, int64_t tile, const Plane<Element>& plane, Placement placement, Offsets* offsets) {
    const int64_t per_image = plan.tiles_y * plan.tiles_x, in_image = tile % per_image;
    placement.rows.first += in_image / plan.tiles_x * plan.tile_h;
    placement.columns.first += in_image % plan.tiles_x * plan.tile_w;
    *offsets = offsets_of(plane, placement.rows, placement.columns, plan.size);
    return plane.data + tile / per_image * plane.height * plane.width * plane.channels;
}

}  // namespace
}  // namespace engine::ENGINE_ISA
