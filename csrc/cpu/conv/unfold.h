// Rows of the unfolded matrix (Chellapilla, Puri and Simard, "High performance convolutional neural networks for
// document processing", 2006), copied a few at a time into a buffer that stays in the cache.
#pragma once

#include "correlation.h"

namespace engine::ENGINE_ISA {
namespace {

// Elements of a row in the buffer at most, and from one row to the next. The surplus lets copies end with a whole
// vector, and keeps rows from falling into the same few sets of the cache, as a power of two would.
template <typename T>
constexpr int64_t kDepth = 1024 / static_cast<int64_t>(sizeof(T));
template <typename T>
constexpr int64_t kPitch = kDepth<T> + kLanes<T>;

// The windows of a few successive results, which are rows of the unfolded matrix: those that lie inside the source
// and those that reach into its padding.
constexpr int64_t kMostWindows = 16;

struct Windows {
    struct Window {
        int64_t row;          // which of the rows it is
        int64_t image, y, x;  // of its first tap
        int64_t start;        // offset of its first element, where it is inside
    };
    Window inside[kMostWindows], border[kMostWindows];
    int64_t inside_count = 0, border_count = 0;

    int64_t count() const { return inside_count + border_count; }

    // Appends a row: the window of the result `at`. Copies read whole vectors, of `lanes` elements, so a window at
    // the very end of the source counts as one of the border.
    void add(const Correlation& c, int64_t group, const Position& at, int64_t lanes) {
        const int64_t pixel = c.groups * c.source_channels, height = c.y.source_size, width = c.x.source_size;
        const int64_t reach_y = (c.y.taps - 1) * c.y.dilation, reach_x = (c.x.taps - 1) * c.x.dilation;
        const int64_t y = at.y * c.y.stride + c.y.offset, x = at.x * c.x.stride + c.x.offset, row = count();
        const int64_t start = ((at.image * height + y) * width + x) * pixel + group * c.source_channels;
        const int64_t end = start + (reach_y * width + reach_x) * pixel + c.source_channels;
        if (y >= 0 && x >= 0 && y + reach_y < height && x + reach_x < width &&
            end + lanes <= c.batch * height * width * pixel)
            inside[inside_count++] = {row, at.image, y, x, start};
        else
            border[border_count++] = {row, at.image, y, x, 0};
    }
};

// Taps of a kernel row whose pixels lie side by side are copied, or read, at once: a span of them. It begins at some
// element of the unfolded row; this says at which, and at which tap.
struct Spans {
    explicit Spans(const Correlation& c)
        : taps(c.x.dilation == 1 && c.groups == 1 ? c.x.taps : 1), elements(taps * c.source_channels) {}

    const int64_t taps, elements;

    struct Part {
        int64_t y, x;            // where its span begins, seen from the first tap
        int64_t skipped, count;  // elements of the span before the part, and in it
    };
    // The longest part of a span that begins at `element` of the unfolded row and ends before `end`.
    Part part(const Correlation& c, int64_t element, int64_t end) const {
        const int64_t index = element / elements, skipped = element % elements, spans = c.x.taps / taps;
        return {index / spans * c.y.dilation, index % spans * c.x.dilation, skipped,
                smaller(elements - skipped, end - element)};
    }
};

// The depth is cut into stretches of equal length, but for the last: where it can be, into whole spans or equal parts
// of them.
template <typename T>
int64_t stretch(const Correlation& c) {
    if (c.depth() == 0) return 1;
    const int64_t span = Spans(c).elements, unit = span <= kDepth<T> ? span : 1;
    if (span > kDepth<T> && span % ceil_div(span, kDepth<T>) == 0) return span / ceil_div(span, kDepth<T>);
    const int64_t units = c.depth() / unit, most = kDepth<T> / unit;
    return ceil_div(units, ceil_div(units, most)) * unit;
}

// Copies elements [skipped, skipped + count) of the windows inside, counted from their starts. Copies may write up to
// a vector more than they are told to; what lies there is written later.
template <typename T>
ENGINE_INLINE void copy_inside(const Windows& windows, const T* source, int64_t skipped, int64_t count, T* to) {
    // Plain copying, in a form that compilers do not make a call of memcpy of: rows are too short for one.
    const int64_t lanes = kLanes<T>, most = count / (4 * lanes) * (4 * lanes);
    for (int64_t w = 0; w < windows.inside_count; ++w) {
        const T* from = source + windows.inside[w].start + skipped;
        T* row = to + windows.inside[w].row * kPitch<T>;
        for (int64_t e = 0; e < most; e += 4 * lanes) {
            const Vector<T> a = load(from + e), b = load(from + e + lanes);
            const Vector<T> c = load(from + e + 2 * lanes), d = load(from + e + 3 * lanes);
            store(row + e, a), store(row + e + lanes, b);
            store(row + e + 2 * lanes, c), store(row + e + 3 * lanes, d);
        }
    }
    for (int64_t e = most; e < count; e += lanes)
        for (int64_t w = 0; w < windows.inside_count; ++w)
            store(to + windows.inside[w].row * kPitch<T> + e, load(source + windows.inside[w].start + skipped + e));
}

template <typename T>
ENGINE_INLINE void fill_zeros(int64_t count, T* to) {
    for (int64_t e = 0; e < count; e += kLanes<T>) store(to + e, Vector<T>{});
}

// Reads nothing beyond the `readable` elements from `from` on.
template <typename T>
ENGINE_INLINE void copy_elements(const T* from, int64_t count, int64_t readable, T* to) {
    int64_t e = 0;
    for (; e + kLanes<T> <= count; e += kLanes<T>) store(to + e, load(from + e));
    if (e == count) return;
    store(to + e, readable - e >= kLanes<T> ? load(from + e) : load_some(from + e, count - e));
}

// The part of a span at pixel (y, x) of the source, with zeros for what lies outside.
template <typename T>
inline void copy_border(const Correlation& c, const T* source, int64_t group, int64_t image, int64_t y, int64_t x,
                        int64_t span, int64_t skipped, int64_t count, T* to) {
    const int64_t pixel = c.groups * c.source_channels, end = skipped + count;
    int64_t first = skipped, last = end;  // the elements inside the source
    if (x < 0) first = smaller(end, larger(skipped, -x * c.source_channels));
    if (x + span > c.x.source_size) last = larger(first, smaller(end, (c.x.source_size - x) * c.source_channels));
    if (y < 0 || y >= c.y.source_size) last = first;
    fill_zeros(first - skipped, to);
    if (last > first) {
        const int64_t from = ((image * c.y.source_size + y) * c.x.source_size + x) * pixel +
                             group * c.source_channels + first;
        const int64_t all = c.batch * c.y.source_size * c.x.source_size * pixel;
        copy_elements(source + from, last - first, all - from, to + (first - skipped));
    }
    fill_zeros(end - last, to + (last - skipped));
}

// Copies elements [begin, end), at most kDepth, of the windows to `to`, rows kPitch apart.
template <typename T>
inline void unfold(const Correlation& c, const T* source, int64_t group, const Windows& windows, int64_t begin,
                   int64_t end, T* to) {
    const int64_t pixel = c.groups * c.source_channels;
    const Spans spans(c);
    for (int64_t element = begin; element < end;) {
        const Spans::Part part = spans.part(c, element, end);
        const int64_t from_first = (part.y * c.x.source_size + part.x) * pixel + part.skipped;
        T* element_to = to + (element - begin);
        copy_inside(windows, source, from_first, part.count, element_to);
        for (int64_t w = 0; w < windows.border_count; ++w) {
            const Windows::Window& window = windows.border[w];
            copy_border(c, source, group, window.image, window.y + part.y, window.x + part.x, spans.taps, part.skipped,
                        part.count, element_to + window.row * kPitch<T>);
        }
        element += part.count;
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
