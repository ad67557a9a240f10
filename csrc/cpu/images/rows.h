// The rows of one image's output as bytes, a channel after the other, before any colour changes.
#pragma once

#include "horizontal.h"
#include "vertical.h"

namespace engine::ENGINE_ISA {
namespace {

// Where an image's window is and what becomes of its rows and columns.
struct View {
    const Pixels& pixels;
    const Axis *down, *right;
    Places rows, columns;
    int64_t channels;
    bool reflected;

    View(const ImagePass& pass, int64_t image, const Axis axes[2], const Pixels& pixels)
        : pixels(pixels),
          down(&axes[0]),
          right(&axes[1]),
          rows(axes[0], pass.height, pass.border == kReflected, false),
          columns(axes[1], pass.width, pass.border == kReflected, pass.mirrored[image] != 0),
          channels(pass.channels),
          reflected(pass.border == kReflected) {}

    bool interleaved() const { return channels > 1 && pixels.column == channels; }
    bool copies() const { return exact(*down) && exact(*right); }
};

// Rows that are copied: no pixel is filtered.
class CopiedRows {
public:
    CopiedRows(Memory& memory, int64_t width)
        : turned_(memory.array<uint8_t>(3 * round_up(width, kSeveral<uint8_t>))),
          reflections_(memory.array<int32_t>(width)) {}

    void prepare(const View& view) {
        const Places& columns = view.columns;
        const auto origin = static_cast<int64_t>(view.right->origin);
        const auto first = static_cast<int64_t>(view.right->first), last = static_cast<int64_t>(view.right->last);
        // Places [begin_, end_) show the columns from column_ on, in their order or mirrored.
        int64_t begin = view.reflected ? larger(0, first - origin) : static_cast<int64_t>(view.right->low);
        int64_t end = view.reflected ? smaller(columns.size, last - origin) : static_cast<int64_t>(view.right->high);
        begin = smaller(begin, columns.size);
        end = larger(begin, end);
        column_ = origin + begin;
        begin_ = columns.mirrored ? columns.size - end : begin;
        end_ = columns.mirrored ? columns.size - begin : end;
        if (!view.reflected) return;
        for (int64_t x = 0; x < begin_; ++x) reflections_[x] = reflection(view, x);
        for (int64_t x = end_; x < columns.size; ++x) reflections_[x] = reflection(view, x);
    }

    void fill(const View& view, int64_t place, uint8_t* const* to) const {
        const Pixels& pixels = view.pixels;
        const auto first = static_cast<int64_t>(view.down->first), last = static_cast<int64_t>(view.down->last);
        const int64_t wanted = static_cast<int64_t>(view.down->origin) + place;
        const int64_t line = view.reflected ? reflected(wanted, first, last) : within(wanted, first, last);
        const uint8_t* row = pixels.memory + line * pixels.row;
        const uint8_t* from = row + column_ * pixels.column;
        const int64_t count = end_ - begin_;
        if (view.interleaved())
            split(from, count, view.columns.mirrored, to);
        else
            for (int64_t c = 0; c < view.channels; ++c)
                move(from + c * pixels.channel, count, view.columns.mirrored, to[c] + begin_);
        if (!view.reflected) return;
        reflect(view, row, 0, begin_, to);
        reflect(view, row, end_, view.columns.size, to);
    }

private:
    uint8_t* turned_;
    int32_t* reflections_;  // of places outside of [begin_, end_): the columns that they show
    int64_t begin_ = 0, end_ = 0, column_ = 0;

    static int32_t reflection(const View& view, int64_t x) {
        const int64_t column = static_cast<int64_t>(view.right->origin) + view.columns.before_mirroring(x);
        return static_cast<int32_t>(
            reflected(column, static_cast<int64_t>(view.right->first), static_cast<int64_t>(view.right->last)));
    }

    void reflect(const View& view, const uint8_t* row, int64_t begin, int64_t end, uint8_t* const* to) const {
        for (int64_t x = begin; x < end; ++x) {
            const uint8_t* from = row + reflections_[x] * view.pixels.column;
            for (int64_t c = 0; c < view.channels; ++c) to[c][x] = from[c * view.pixels.channel];
        }
    }

    static ENGINE_INLINE void move(const uint8_t* from, int64_t count, bool mirrored, uint8_t* to) {
        mirrored ? copy_reversed(from, count, to) : copy_bytes(from, count, to);
    }

    void split(const uint8_t* from, int64_t count, bool mirrored, uint8_t* const* to) const {
        if (!mirrored)
            return deinterleave(from, count, to[0] + begin_, to[1] + begin_, to[2] + begin_);
        const int64_t stride = round_up(count, kSeveral<uint8_t>);
        deinterleave(from, count, turned_, turned_ + stride, turned_ + 2 * stride);
        for (int64_t c = 0; c < 3; ++c) copy_reversed(turned_ + c * stride, count, to[c] + begin_);
    }
};

// Rows that are filtered: down first, then to the right.
class FilteredRows {
public:
    FilteredRows(Memory& memory, int64_t width, int64_t most_rows, int64_t most_columns)
        : across_(memory, width, most_columns),
          stride_(Horizontal::padded(most_columns)),
          shares_(memory.array<float>(most_rows)),
          blended_(memory.array<float>(3 * stride_)),
          planes_(memory.array<float>(3 * stride_)) {}

    void prepare(const View& view) {
        across_.prepare(*view.right, view.columns);
        stride_ = Horizontal::padded(across_.columns);
        const size_t all = static_cast<size_t>(3 * stride_) * sizeof(float);  // what is beyond the columns counts 0
        std::memset(blended_, 0, all);
        std::memset(planes_, 0, all);
    }

    void fill(const View& view, int64_t place, uint8_t* const* to) {
        const Taps taps(*view.down, place);
        for (int64_t tap = 0; tap < taps.count; ++tap) shares_[tap] = taps.weight(tap);
        const Pixels& pixels = view.pixels;
        const uint8_t* from = pixels.memory + taps.first * pixels.row + across_.begin * pixels.column;
        const int64_t columns = across_.columns;
        if (view.channels == 1) {
            blend_rows(from, pixels.row, shares_, taps.count, columns, planes_);
            return across_.filter<1>(planes_, stride_, to);
        }
        if (view.interleaved()) {
            blend_rows(from, pixels.row, shares_, taps.count, 3 * columns, blended_);
            const int64_t whole = round_up(columns, kPixels);
            deinterleave(blended_, whole, planes_, planes_ + stride_, planes_ + 2 * stride_);
        } else {
            for (int64_t c = 0; c < 3; ++c)
                blend_rows(from + c * pixels.channel, pixels.row, shares_, taps.count, columns, planes_ + c * stride_);
        }
        across_.filter<3>(planes_, stride_, to);
    }

private:
    Horizontal across_;
    int64_t stride_;
    float *shares_, *blended_, *planes_;
};

// All rows, with their border.
class Rows {
public:
    Rows(Memory& memory, const ImagePass& pass, int64_t most_rows, int64_t most_columns)
        : copied_(memory, pass.width),
          filtered_(memory, pass.width, most_rows, most_columns),
          stride_(round_up(pass.width, 64) + 64),
          shown_(memory.array<uint8_t>(3 * stride_)),
          border_(memory.array<uint8_t>(3 * stride_)) {}

    void prepare(const ImagePass& pass, const View& view) {
        for (int64_t c = 0; c < 3; ++c) {
            const int colour = static_cast<int>(pass.fill[c]);
            std::memset(shown_ + c * stride_, colour, static_cast<size_t>(stride_));
            std::memset(border_ + c * stride_, colour, static_cast<size_t>(stride_));
        }
        if (view.copies())
            copied_.prepare(view);
        else
            filtered_.prepare(view);
    }

    // Sets rows[c] to where row `place` of channel c is, until the next call. At least kPixels bytes lie there.
    void get(const View& view, int64_t place, const uint8_t* rows[3]) {
        uint8_t* const base = view.rows.shows(place) && view.columns.low < view.columns.high ? shown_ : border_;
        uint8_t* const to[3] = {base, base + stride_, base + 2 * stride_};
        for (int64_t c = 0; c < 3; ++c) rows[c] = to[c];
        if (base == border_) return;
        view.copies() ? copied_.fill(view, place, to) : filtered_.fill(view, place, to);
    }

private:
    CopiedRows copied_;
    FilteredRows filtered_;
    int64_t stride_;
    uint8_t *shown_, *border_;
};

}  // namespace
}  // namespace engine::ENGINE_ISA
