// NCHW: vectors run along the places of a channel. A strip of places is taken through all channels, so that the rows of
// a window, one for each channel, come from memory once.
#pragma once

#include "../lrn.h"
#include "power.h"

namespace engine::ENGINE_ISA {
namespace {

template <typename T, typename Power>
class Planes {
public:
    explicit Planes(const LrnCall& call)
        : call_(call), power_(call.beta), scale_(static_cast<T>(call.scale)), k_(static_cast<T>(call.k)),
          factor_(static_cast<T>(2 * call.beta * call.scale)), strips_(larger(1, call.places / kLrnStrip)) {}

    int64_t items() const { return call_.images * strips_; }

    void forward(int64_t item, T*) const {
        const Strip strip(*this, item);
        const T* const x = static_cast<const T*>(call_.x) + strip.first;
        T* const out = static_cast<T*>(call_.out) + strip.first;
        for (int64_t channel = 0; channel < call_.channels; ++channel)
            strip.visit([&](int64_t at) {
                const int64_t own = channel * call_.places + at;
                const Vector<T> s = sum(x + at, channel, strip.count);
                store_some(out + own, power_.quotient(load_some(x + own, strip.count), s), strip.count);
            });
    }

    // workspace: rows for g, of as many channels as a window has, which follow each other in a ring; and behind them as
    // many for the gradient over s^beta.
    void backward(int64_t item, T* workspace) const {
        const Strip strip(*this, item);
        for (int64_t channel = 0; channel < call_.channels + call_.below; ++channel) {
            if (channel < call_.channels) weigh(strip, channel, workspace);
            if (channel >= call_.below) finish(strip, channel - call_.below, workspace);
        }
    }

private:
    static constexpr int64_t kPitch = 2 * kLrnStrip;

    struct Strip {
        int64_t first;  // where it begins, in the first channel
        int64_t width;  // places
        int64_t count;  // lanes of a vector that are used: all, but where a channel has fewer places

        Strip(const Planes& planes, int64_t item) {
            const LrnCall& call = planes.call_;
            const int64_t left = item % planes.strips_ * kLrnStrip;
            first = item / planes.strips_ * call.channels * call.places + left;
            width = left + 2 * kLrnStrip > call.places ? call.places - left : kLrnStrip;
            count = smaller(width, kLanes<T>);
        }
        // Calls with where each vector begins. The last ends with the strip, and does places of the one before again.
        template <typename Visit>
        ENGINE_INLINE void visit(const Visit& at) const {
            for (int64_t place = 0; place < width; place += count) at(smaller(place, width - count));
        }
    };

    int64_t rows() const { return call_.below + call_.above + 1; }

    ENGINE_INLINE Vector<T> sum(const T* x, int64_t channel, int64_t count) const {
        const int64_t low = larger(0, channel - call_.below), high = smaller(call_.channels - 1, channel + call_.above);
        Vector<T> squares{};
        for (int64_t row = low; row <= high; ++row) {
            const Vector<T> values = load_some(x + row * call_.places, count);
            squares += values * values;
        }
        return scale_ * squares + k_;
    }

    void weigh(const Strip& strip, int64_t channel, T* workspace) const {
        const T* const x = static_cast<const T*>(call_.x) + strip.first;
        const T* const gradient = static_cast<const T*>(call_.gradient) + strip.first;
        T* const g = workspace + channel % rows() * kPitch;
        strip.visit([&](int64_t at) {
            const int64_t own = channel * call_.places + at;
            Vector<T> power, reciprocal;
            power_.both(sum(x + at, channel, strip.count), power, reciprocal);
            const Vector<T> over = load_some(gradient + own, strip.count) * power;
            store(g + at, over * load_some(x + own, strip.count) * reciprocal);
            store(g + rows() * kPitch + at, over);
        });
    }

    void finish(const Strip& strip, int64_t channel, const T* workspace) const {
        const T* const x = static_cast<const T*>(call_.x) + strip.first + channel * call_.places;
        T* const out = static_cast<T*>(call_.out) + strip.first + channel * call_.places;
        const int64_t low = larger(0, channel - call_.above), high = smaller(call_.channels - 1, channel + call_.below);
        const T* const over = workspace + (rows() + channel % rows()) * kPitch;
        strip.visit([&](int64_t at) {
            Vector<T> total{};
            for (int64_t other = low, row = low % rows(); other <= high; ++other) {
                total += load(workspace + row * kPitch + at);
                row = row + 1 == rows() ? 0 : row + 1;
            }
            const Vector<T> own = load_some(x + at, strip.count);
            store_some(out + at, load(over + at) - factor_ * own * total, strip.count);
        });
    }

    const LrnCall& call_;
    Power power_;
    T scale_, k_, factor_;
    int64_t strips_;
};

}  // namespace
}  // namespace engine::ENGINE_ISA
