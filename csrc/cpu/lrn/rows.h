// channels_last: vectors run along the channels of a place. Its squares are written to rows with zeros on both sides,
// where a window's channels are vectors that begin one number apart. A block of places takes each step together, as
// what has just been written cannot be read at another address at once.
#pragma once

#include "../lrn.h"
#include "power.h"

namespace engine::ENGINE_ISA {
namespace {

template <typename T, typename Power>
class Rows {
public:
    explicit Rows(const LrnCall& call)
        : call_(call), power_(call.beta), scale_(static_cast<T>(call.scale)), k_(static_cast<T>(call.k)),
          factor_(static_cast<T>(2 * call.beta * call.scale)), pitch_(lrn_pitch(call)),
          beside_(larger(call.below, call.above)), count_(smaller(call.channels, kLanes<T>)),
          block_(lrn_block_places(call)) {}

    int64_t items() const { return ceil_div(call_.images * call_.places, block_); }

    void forward(int64_t item, T* squares) const {
        const T* const x = static_cast<const T*>(call_.x);
        T* const out = static_cast<T*>(call_.out);
        square(item, squares);
        visit(item, [&](int64_t row, int64_t channel, int64_t own) {
            const Vector<T> s = sum(squares + row + channel);
            store_some(out + own, power_.quotient(load_some(x + own, count_), s), count_);
        });
    }

    void backward(int64_t item, T* squares) const {
        const T* const x = static_cast<const T*>(call_.x);
        const T* const gradient = static_cast<const T*>(call_.gradient);
        T* const out = static_cast<T*>(call_.out);
        T* const g = squares + block_ * pitch_;  // as csrc/lrn.h has it
        T* const over = g + block_ * pitch_;     // the gradient over s^beta
        square(item, squares);
        clear(item, g);
        visit(item, [&](int64_t row, int64_t channel, int64_t own) {
            Vector<T> power, reciprocal;
            power_.both(sum(squares + row + channel), power, reciprocal);
            const Vector<T> scaled = load_some(gradient + own, count_) * power;
            store(over + row + channel, scaled);
            store_some(g + row + channel, scaled * load_some(x + own, count_) * reciprocal, count_);
        });
        visit(item, [&](int64_t row, int64_t channel, int64_t own) {
            const Vector<T> total = window(g + row + channel, call_.above, call_.below);
            const Vector<T> values = load_some(x + own, count_);
            store_some(out + own, load(over + row + channel) - factor_ * values * total, count_);
        });
    }

private:
    // Calls with where each place's row begins behind its zeros, the channel of a vector's first lane, and where that
    // is in memory. The last vector ends with the channels, and does some of the one before again.
    template <typename Visit>
    ENGINE_INLINE void visit(int64_t item, const Visit& at) const {
        for (int64_t place = 0; place < places(item); ++place)
            for (int64_t lane = 0; lane < call_.channels; lane += count_) {
                const int64_t channel = smaller(lane, call_.channels - count_);
                at(place * pitch_ + beside_, channel, (item * block_ + place) * call_.channels + channel);
            }
    }

    int64_t places(int64_t item) const { return smaller(block_, call_.images * call_.places - item * block_); }

    void square(int64_t item, T* squares) const {
        const T* const x = static_cast<const T*>(call_.x);
        clear(item, squares);
        visit(item, [&](int64_t row, int64_t channel, int64_t own) {
            const Vector<T> values = load_some(x + own, count_);
            store_some(squares + row + channel, values * values, count_);
        });
    }

    // Makes the zeros beside the channels.
    void clear(int64_t item, T* rows) const {
        const int64_t behind = pitch_ - beside_ - call_.channels;
        for (int64_t place = 0; place < places(item); ++place, rows += pitch_) {
            std::memset(rows, 0, static_cast<size_t>(beside_) * sizeof(T));
            std::memset(rows + beside_ + call_.channels, 0, static_cast<size_t>(behind) * sizeof(T));
        }
    }

    ENGINE_INLINE Vector<T> sum(const T* squares) const {
        return scale_ * window(squares, call_.below, call_.above) + k_;
    }

    ENGINE_INLINE Vector<T> window(const T* row, int64_t before, int64_t behind) const {
        Vector<T> total{};
        for (int64_t other = -before; other <= behind; ++other) total += load(row + other);
        return total;
    }

    const LrnCall& call_;
    Power power_;
    T scale_, k_, factor_;
    int64_t pitch_, beside_, count_, block_;
};

}  // namespace
}  // namespace engine::ENGINE_ISA
