// The kernel of a correlation as panels of a matrix, in the order in which the products read them.
#pragma once

#include "../gemm.h"
#include "../team.h"
#include "unfold.h"

namespace engine::ENGINE_ISA {
namespace {

// Elements of the kernel's panels: [group][stretch of the depth][panel][depth][kPanel columns], the last panel
// narrower by a vector where that is enough.
template <typename T>
int64_t panel_elements(const Correlation& c) {
    return c.groups * c.depth() * round_up(c.target_channels, kLanes<T>);
}

// Where the panels of a group and of the stretch from `begin` on lie.
template <typename T>
int64_t stretch_offset(const Correlation& c, int64_t group, int64_t begin) {
    return (group * c.depth() + begin) * round_up(c.target_channels, kLanes<T>);
}

// Where the weight's element for a group, tap of the kernel, source channel and target channel lies: at the sum of
// each times its step.
struct WeightLayout {
    int64_t group_step, tap_step, source_step, target_step;
    int64_t kernel_w;
};

// to[source][target] = from[source * source_step + target * target_step], zeros from `targets` on up to `width`.
template <typename T>
inline void pack_tap(const WeightLayout& layout, const T* from, int64_t sources, int64_t targets, int64_t width,
                     T* to) {
    if (layout.target_step == 1) {
        for (int64_t source = 0; source < sources; ++source)
            for (int64_t target = 0; target < targets; ++target)
                to[source * width + target] = from[source * layout.source_step + target];
    } else {  // a transposition: it reads in order, for what it writes fits the first cache
        for (int64_t target = 0; target < targets; ++target)
            for (int64_t source = 0; source < sources; ++source)
                to[source * width + target] = from[source * layout.source_step + target * layout.target_step];
    }
    for (int64_t source = 0; source < sources; ++source)
        for (int64_t target = targets; target < width; ++target) to[source * width + target] = 0;
}

// Packs columns [first, first + targets) of the depth [begin, end) of a group.
template <typename T>
inline void pack_panel(const Correlation& c, const WeightLayout& layout, const T* weight, int64_t group, int64_t begin,
                       int64_t end, int64_t first, int64_t targets, T* to) {
    const int64_t width = targets > kLanes<T> ? kPanel<T> : kLanes<T>;
    for (int64_t k = begin; k < end;) {
        const int64_t tap = k / c.source_channels, source = k % c.source_channels;
        const int64_t sources = smaller(c.source_channels - source, end - k);
        const int64_t tap_y = c.y.first_tap + tap / c.x.taps * c.y.tap_step;
        const int64_t tap_x = c.x.first_tap + tap % c.x.taps * c.x.tap_step;
        const int64_t from = group * layout.group_step + (tap_y * layout.kernel_w + tap_x) * layout.tap_step +
                             source * layout.source_step + first * layout.target_step;
        pack_tap(layout, weight + from, sources, targets, width, to);
        k += sources;
        to += sources * width;
    }
}

template <typename T>
void pack_panels(Team& team, const Correlation& c, const WeightLayout& layout, const T* weight, T* panels) {
    const int64_t depth = c.depth(), length = stretch<T>(c);
    const int64_t stretches = ceil_div(depth, length), columns = ceil_div(c.target_channels, kPanel<T>);
    team.share(c.groups * stretches * columns, [&](int64_t item) {
        const int64_t first = item % columns * kPanel<T>, targets = smaller(kPanel<T>, c.target_channels - first);
        const int64_t begin = item / columns % stretches * length, end = smaller(depth, begin + length);
        const int64_t group = item / columns / stretches;
        T* to = panels + stretch_offset<T>(c, group, begin) + first * (end - begin);
        pack_panel(c, layout, weight, group, begin, end, first, targets, to);
    });
}

}  // namespace
}  // namespace engine::ENGINE_ISA
