// Changes of colour, folded on the host into as few steps as give the same, and taken by the GPU's threads.
//
// Changes that are linear and not clipped are multiplied. So is a contrast, although the mean that it needs is not
// known on the host: a step adds a matrix times the mean of what it is given, and the mean of what a linear change
// makes of an image is what it makes of the mean. Clipping and a turn of the hue end a step.
#pragma once

#include "../images.h"
#include "device.h"

namespace engine {
namespace cuda {
namespace {

enum StepKind : int32_t { kTurns = 1, kClips = 2, kNeedsMean = 4 };

// out = matrix * in + offset, or the hue turned; then clipped or not. Where it needs a mean, the GPU computes
// offset = of_mean * (mean of `in` over the image) + constant.
struct Step {
    float matrix[3][3], offset[3];
    float of_mean[3][3], constant[3];
    float turn;
    int32_t kind;  // some of StepKind
};

// Linear changes, one after the other: pixel * (r, g, b) + mean * (mean of r, of g, of b) + constant.
struct Linear {
    double pixel[3][3], mean[3][3], constant[3];

    static Linear scaled(double factor) {
        Linear linear{};
        for (int row = 0; row < 3; ++row) linear.pixel[row][row] = factor;
        return linear;
    }

    bool identity() const {
        for (int row = 0; row < 3; ++row) {
            if (constant[row] != 0) return false;
            for (int column = 0; column < 3; ++column)
                if (mean[row][column] != 0 || pixel[row][column] != (row == column ? 1 : 0)) return false;
        }
        return true;
    }

    // Then a matrix of 3 rows of (r, g, b, 1).
    void multiply(const double (&by)[3][4]) {
        const Linear before = *this;
        *this = Linear{};
        for (int row = 0; row < 3; ++row) {
            constant[row] = by[row][3];
            for (int inner = 0; inner < 3; ++inner) {
                constant[row] += by[row][inner] * before.constant[inner];
                for (int column = 0; column < 3; ++column) {
                    pixel[row][column] += by[row][inner] * before.pixel[inner][column];
                    mean[row][column] += by[row][inner] * before.mean[inner][column];
                }
            }
        }
    }

    // Then a mixture with its own mean grey.
    void mix_with_mean(double factor, const double (&luma)[3]) {
        double grey_of_mean[3] = {}, grey = 0;
        for (int row = 0; row < 3; ++row) {
            grey += luma[row] * constant[row];
            for (int column = 0; column < 3; ++column)
                grey_of_mean[column] += luma[row] * (pixel[row][column] + mean[row][column]);
        }
        for (int row = 0; row < 3; ++row) {
            constant[row] = factor * constant[row] + (1 - factor) * grey;
            for (int column = 0; column < 3; ++column) {
                pixel[row][column] *= factor;
                mean[row][column] = factor * mean[row][column] + (1 - factor) * grey_of_mean[column];
            }
        }
    }

    Step step(bool clips) const {
        Step step{};
        step.kind = clips ? kClips : 0;
        for (int row = 0; row < 3; ++row) {
            step.offset[row] = step.constant[row] = float(constant[row]);
            for (int column = 0; column < 3; ++column) {
                step.matrix[row][column] = float(pixel[row][column]);
                step.of_mean[row][column] = float(mean[row][column]);
                if (mean[row][column] != 0) step.kind |= kNeedsMean;
            }
        }
        return step;
    }
};

inline void change(Linear& linear, int32_t kind, const float* factors, int64_t channels) {
    constexpr double kColour[3] = {0.2989, 0.587, 0.114}, kGrey[3] = {1, 0, 0};
    const double(&luma)[3] = channels == 3 ? kColour : kGrey;
    const double factor = factors[0];
    double by[3][4] = {};
    for (int row = 0; row < 3; ++row) by[row][row] = factor;
    if (kind == kContrast) return linear.mix_with_mean(factor, luma);
    if (kind == kAffine)
        for (int number = 0; number < 12; ++number) by[number / 4][number % 4] = factors[number];
    if (channels == 1) by[0][1] = by[0][2] = 0;
    if (kind == kSaturation && channels == 3)
        for (auto& row : by)
            for (int column = 0; column < 3; ++column) row[column] += (1 - factor) * luma[column];
    if (kind == kBrightness || kind == kAffine || (kind == kSaturation && channels == 3)) linear.multiply(by);
}

// The most steps that an image of the pass has.
inline int64_t most_steps(const ImagePass& pass) {
    int64_t most = 0;
    for (int64_t image = 0; image < pass.images && pass.output != kBytes; ++image) {
        int64_t steps = 1;
        for (int64_t number = 0; number < pass.changes; ++number) {
            const int32_t kind = pass.kinds[image * pass.changes + number];
            steps += (kind & ~kClipped) == kHue ? 2 : (kind & kClipped) != 0;
        }
        most = steps > most ? steps : most;
    }
    return most;
}

// Writes the steps of one image, from bytes on; returns how many they are.
inline int32_t fold(const ImagePass& pass, int64_t image, Step* steps) {
    int32_t count = 0;
    Linear linear = Linear::scaled(1.0 / 255);
    const auto flush = [&] {
        if (!linear.identity()) steps[count++] = linear.step(false);
        linear = Linear::scaled(1);
    };
    for (int64_t number = image * pass.changes; number < (image + 1) * pass.changes; ++number) {
        const int32_t kind = pass.kinds[number] & ~kClipped;
        const bool clips = (pass.kinds[number] & kClipped) != 0;
        if (kind == kHue && pass.channels == 3) {
            flush();
            Step& step = steps[count++] = Step{};
            step.kind = kTurns | (clips ? kClips : 0);
            step.turn = pass.factors[12 * number];
            continue;
        }
        change(linear, kind, pass.factors + 12 * number, pass.channels);
        if (!clips) continue;
        steps[count++] = linear.step(true);
        linear = Linear::scaled(1);
    }
    flush();
    return count;
}

__device__ __forceinline__ float clipped(float value) { return fminf(fmaxf(value, 0.0f), 1.0f); }

// The hue of HSV, turned by a part of the circle, as torchvision's adjust_hue does it with floats.
__device__ __forceinline__ void turn_hue(float turn, float (&colour)[3]) {
    const float value = fmaxf(colour[0], fmaxf(colour[1], colour[2]));
    const float chroma = value - fminf(colour[0], fminf(colour[1], colour[2]));
    const float saturation = chroma / (value == 0 ? 1.0f : value), divisor = chroma == 0 ? 1.0f : chroma;
    const float r = (value - colour[0]) / divisor, g = (value - colour[1]) / divisor, b = (value - colour[2]) / divisor;
    const float sixths = value == colour[0] ? b - g : value == colour[1] ? 2.0f + r - b : 4.0f + g - r;
    const float turned = sixths * (1.0f / 6.0f) + (1.0f + turn), place = (turned - floorf(turned)) * 6.0f;
    const int sector = int(place);  // 0 to 5; where rounding makes it 6, it is 0 again
    const float rest = place - float(sector);
    const float low = clipped(value * (1.0f - saturation));
    const float falling = clipped(value * (1.0f - saturation * rest));
    const float rising = clipped(value * (1.0f - saturation * (1.0f - rest)));
    const bool zero = sector == 0 || sector == 6;
    colour[0] = zero || sector == 5 ? value : sector == 1 ? falling : sector == 4 ? rising : low;
    colour[1] = zero ? rising : sector <= 2 ? value : sector == 3 ? falling : low;
    colour[2] = zero || sector == 1 ? low : sector == 2 ? rising : sector <= 4 ? value : falling;
}

template <int channels>
__device__ __forceinline__ void take_step(const Step& step, float (&colour)[channels]) {
    if constexpr (channels == 1) {
        colour[0] = fma(colour[0], step.matrix[0][0], step.offset[0]);
    } else if (step.kind & kTurns) {
        turn_hue(step.turn, colour);
    } else {
        const float r = colour[0], g = colour[1], b = colour[2];
        ENGINE_UNROLL
        for (int c = 0; c < 3; ++c)
            colour[c] = fma(r, step.matrix[c][0], fma(g, step.matrix[c][1], fma(b, step.matrix[c][2], step.offset[c])));
    }
    if (step.kind & kClips) {
        ENGINE_UNROLL
        for (int c = 0; c < channels; ++c) colour[c] = clipped(colour[c]);
    }
}

}  // namespace
}  // namespace cuda
}  // namespace engine
