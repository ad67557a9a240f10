// Rows of one image's output as bytes, a channel after the other, before any colour changes.
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
    bool copied;  // no pixel is filtered

    View(const ImagePass& pass, int64_t image, const Axis axes[2], const Pixels& pixels)
        : pixels(pixels),
          down(&axes[0]),
          right(&axes[1]),
          rows(axes[0], pass.height, pass.border == kReflected, false),
          columns(axes[1], pass.width, pass.border == kReflected, pass.mirrored[image] != 0),
          channels(pass.channels),
          reflected(pass.border == kReflected),
          copied(exact(axes[0]) && exact(axes[1])) {}

    bool interleaved() const { return channels > 1 && pixels.column == channels; }
};

class CopiedRows {
public:
    CopiedRows(Memory& memory, int64_t width)
        : turned_(memory.array<uint8_t>(3 * round_up(width, kSeveral<uint8_t>))),
          reflections_(memory.array<int32_t>(width)) {}

    void prepare(const View& view) {
        const Places& columns = view.columns;
        const auto origin = static_cast<int64_t>(view.right->origin);
        const auto first = static_cast<int64_t>(view.right->first), last = static_cast<int64_t>(view.right->last);
        lines_ = {static_cast<int64_t>(view.down->origin), static_cast<int64_t>(view.down->first),
                  static_cast<int64_t>(view.down->last), view.reflected};
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

    // `count` rows from place on, the first of each channel to to[c].
    void fill(const View& view, int64_t place, int64_t count, uint8_t* const* to) const {
        if (view.interleaved()) {
            for (int64_t row = 0; row < count; ++row) {
                const int64_t at = row * view.columns.size;
                uint8_t* const rows[3] = {to[0] + at, to[1] + at, to[2] + at};
                split(source(view, lines_.at(place + row)) + column_ * 3, end_ - begin_, view.columns.mirrored, rows);
            }
        } else {
            for (int64_t c = 0; c < view.channels; ++c)
                view.columns.mirrored ? move<true>(view, place, count, c, to[c]) : move<false>(view, place, count, c, to[c]);
        }
        for (int64_t row = 0; view.reflected && row < count; ++row) {
            const int64_t at = row * view.columns.size;
            uint8_t* const rows[3] = {to[0] + at, to[1] + at, to[2] + at};
            const uint8_t* from = source(view, lines_.at(place + row));
            reflect(view, from, 0, begin_, rows);
            reflect(view, from, end_, view.columns.size, rows);
        }
    }

private:
    uint8_t* turned_;
    int32_t* reflections_;  // of places outside of [begin_, end_): the columns that they show
    int64_t begin_ = 0, end_ = 0, column_ = 0;

    // Which rows of the source are shown.
    struct Lines {
        int64_t origin, first, last;
        bool is_reflected;

        int64_t at(int64_t place) const {
            return is_reflected ? reflected(origin + place, first, last) : within(origin + place, first, last);
        }
    };
    Lines lines_{};

    static const uint8_t* source(const View& view, int64_t line) {
        return view.pixels.memory + line * view.pixels.row;
    }

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

    // Rows of one channel, whose pixels lie side by side.
    template <bool mirrored>
    void move(const View& view, int64_t place, int64_t rows, int64_t channel, uint8_t* to) const {
        // Copies, because bytes that are written might be any other variable's.
        const uint8_t* const plane = view.pixels.memory + channel * view.pixels.channel + column_;
        const int64_t stride = view.pixels.row, width = view.columns.size, count = end_ - begin_;
        const Lines lines = lines_;
        to += begin_;
        for (int64_t row = 0; row < rows; ++row, to += width) {
            const uint8_t* from = plane + lines.at(place + row) * stride;
            mirrored ? copy_reversed(from, count, to) : copy_bytes(from, count, to);
        }
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

// All rows, with their border; several at once, because a row of a small image is soon done.
class Rows {
public:
    // How many rows lie side by side, of each channel.
    static int64_t at_once(const ImagePass& pass) {
        constexpr int64_t pixels = 1024;
        return smaller(pass.height, larger(1, pixels / pass.width));
    }

    Rows(Memory& memory, const ImagePass& pass, int64_t most_rows, int64_t most_columns)
        : copied_(memory, pass.width),
          filtered_(memory, pass.width, most_rows, most_columns),
          width_(pass.width),
          stride_(round_up(at_once(pass) * width_, 64) + 64),
          shown_(memory.array<uint8_t>(3 * stride_)) {}

    void prepare(const ImagePass& pass, const View& view) {
        for (int c = 0; c < 3; ++c) fill_[c] = static_cast<int>(pass.fill[c]);
        empty_ = view.columns.low >= view.columns.high;
        if (view.columns.low > 0 || view.columns.high < width_)  // what is beside them stays as it is
            for (int c = 0; c < 3; ++c) std::memset(shown_ + c * stride_, fill_[c], static_cast<size_t>(stride_));
        if (view.copied)
            copied_.prepare(view);
        else
            filtered_.prepare(view);
    }

    // Sets rows[c] to where `count` rows of channel c are, from row `place` on, until the next call. At least kPixels
    // bytes lie there.
    void get(const View& view, int64_t place, int64_t count, const uint8_t* rows[3]) {
        const int64_t begin = empty_ ? count : within(view.rows.low - place, 0, count + 1);  // of rows that show it
        const int64_t end = larger(begin, within(view.rows.high - place, 0, count + 1));
        uint8_t* to[3];
        for (int c = 0; c < 3; ++c) {
            uint8_t* const all = shown_ + c * stride_;
            std::memset(all, fill_[c], static_cast<size_t>(begin * width_));
            std::memset(all + end * width_, fill_[c], static_cast<size_t>((count - end) * width_));
            rows[c] = all;
            to[c] = all + begin * width_;
        }
        if (view.copied) return copied_.fill(view, place + begin, end - begin, to);
        for (int64_t row = begin; row < end; ++row) {
            filtered_.fill(view, place + row, to);
            for (uint8_t*& channel : to) channel += width_;
        }
    }

private:
    CopiedRows copied_;
    FilteredRows filtered_;
    int64_t width_, stride_;
    uint8_t* shown_;
    int fill_[3] = {};
    bool empty_ = false;
};

}  // namespace
}  // namespace engine::ENGINE_ISA
