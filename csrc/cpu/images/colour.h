// Changes of colour: folded into as few steps as give the same, and carried out on rows of bytes.
#pragma once

#include "../../images.h"
#include "hue.h"
#include "memory.h"

namespace engine::ENGINE_ISA {
namespace {

// A matrix of 3 rows of (r, g, b, 1), or a turn of the hue; then perhaps clipping.
struct Step {
    float matrix[12];
    float turn;
    bool hue, diagonal, clipped;
};

// A matrix in float64, while changes are folded into it.
struct Matrix {
    double rows[3][4];

    static Matrix scale(double factor) {
        Matrix matrix{};
        for (int row = 0; row < 3; ++row) matrix.rows[row][row] = factor;
        return matrix;
    }

    bool identity() const {
        for (int row = 0; row < 3; ++row)
            for (int column = 0; column < 4; ++column)
                if (rows[row][column] != (row == column ? 1 : 0)) return false;
        return true;
    }

    // This one after another.
    Matrix after(const Matrix& before) const {
        Matrix both{};
        for (int row = 0; row < 3; ++row) {
            both.rows[row][3] = rows[row][3];
            for (int inner = 0; inner < 3; ++inner)
                for (int column = 0; column < 4; ++column)
                    both.rows[row][column] += rows[row][inner] * before.rows[inner][column];
        }
        return both;
    }

    Step step(bool clipped) const {
        Step step{};
        step.diagonal = true;
        step.clipped = clipped;
        for (int row = 0; row < 3; ++row)
            for (int column = 0; column < 4; ++column) {
                step.matrix[4 * row + column] = static_cast<float>(rows[row][column]);
                if (column < 3 && column != row && rows[row][column] != 0) step.diagonal = false;
            }
        return step;
    }
};

constexpr double kLuma[3] = {0.2989, 0.587, 0.114};

// What the steps make of kPixels pixels.
template <int channels>
ENGINE_INLINE void take_step(const Step& step, Floats* v) {
    if (step.hue) {
        if constexpr (channels == 3) turn_hue(step.turn, v[0], v[1], v[2]);
    } else if (channels == 1 || step.diagonal) {
#pragma GCC unroll 3
        for (int c = 0; c < channels; ++c) v[c] = v[c] * step.matrix[5 * c] + step.matrix[4 * c + 3];
    } else if constexpr (channels == 3) {
        const Floats r = v[0], g = v[1], b = v[2];
        const float* m = step.matrix;
#pragma GCC unroll 3
        for (int c = 0; c < 3; ++c, m += 4) v[c] = r * m[0] + (g * m[1] + (b * m[2] + m[3]));
    }
    if (step.clipped)
#pragma GCC unroll 3
        for (int c = 0; c < channels; ++c) v[c] = clipped(v[c]);
}

template <int channels>
ENGINE_INLINE void take_steps(const Step* steps, int64_t count, const uint8_t* const* from, int64_t x, float* const* to,
                              int64_t at) {
    Floats v[channels];
#pragma GCC unroll 3
    for (int c = 0; c < channels; ++c) v[c] = floats_at(from[c] + x);
    for (int64_t s = 0; s < count; ++s) take_step<channels>(steps[s], v);
#pragma GCC unroll 3
    for (int c = 0; c < channels; ++c) store(to[c] + at, v[c]);
}

// A row through all steps. At least kPixels bytes of it can be read; `width` floats are written.
template <int channels>
void colour_row(const Step* steps, int64_t count, const uint8_t* const* from, int64_t width, float* const* to) {
    int64_t x = 0;
    for (; x + kPixels <= width; x += kPixels) take_steps<channels>(steps, count, from, x, to, x);
    if (x == width) return;
    if (width >= kPixels) return take_steps<channels>(steps, count, from, width - kPixels, to, width - kPixels);
    float short_row[channels][kPixels], *short_rows[channels];
    for (int c = 0; c < channels; ++c) short_rows[c] = short_row[c];
    take_steps<channels>(steps, count, from, 0, short_rows, 0);
    for (int c = 0; c < channels; ++c) std::memcpy(to[c], short_row[c], static_cast<size_t>(width) * sizeof(float));
}

// The bytes of an image's output, kept because a mean over them is needed before any is changed.
struct Kept {
    uint8_t* bytes;  // channels * plane_stride()
    float* row;      // 3 * row_stride()
    int64_t height, width, channels;
    int64_t sums[3];

    int64_t row_stride() const { return round_up(width, 64); }
    int64_t plane_stride() const { return round_up(height * width, 64) + 64; }  // so that kPixels of a row can be read

    void rows(int64_t y, const uint8_t* rows[3]) const {
        for (int64_t c = 0; c < 3; ++c) rows[c] = bytes + (c < channels ? c : 0) * plane_stride() + y * width;
    }

    void keep(int64_t y, int64_t count, const uint8_t* const* rows) {
        const int64_t pixels = count * width;
        for (int64_t c = 0; c < channels; ++c) {
            std::memcpy(bytes + c * plane_stride() + y * width, rows[c], static_cast<size_t>(pixels));
            Integers sum{};
            int64_t x = 0;
            for (; x + kPixels <= pixels; x += kPixels) sum += __builtin_convertvector(floats_at(rows[c] + x), Integers);
            for (; x < pixels; ++x) sums[c] += rows[c][x];
            for (int lane = 0; lane < kPixels; ++lane) sums[c] += sum[lane];
        }
    }

    double pixels() const { return static_cast<double>(height * width); }

    // The mean of each channel after some steps.
    template <int count_of_channels>
    void means_after(const Step* steps, int64_t count, double* means) const {
        for (int c = 0; c < 3; ++c) means[c] = 0;
        float* const to[3] = {row, row + row_stride(), row + 2 * row_stride()};
        for (int64_t y = 0; y < height; ++y) {
            const uint8_t* from[3];
            rows(y, from);
            colour_row<count_of_channels>(steps, count, from, width, to);
            Floats sums_of_row[count_of_channels] = {};
            int64_t x = 0;
            for (; x + kPixels <= width; x += kPixels)
                for (int c = 0; c < count_of_channels; ++c) sums_of_row[c] += load(to[c] + x);
            for (int c = 0; c < count_of_channels; ++c) {
                for (int64_t rest = x; rest < width; ++rest) means[c] += to[c][rest];
                for (int lane = 0; lane < kPixels; ++lane) means[c] += sums_of_row[c][lane];
            }
        }
        for (int c = 0; c < 3; ++c) means[c] /= pixels();
    }
};

// All the changes of one image, as steps from bytes on.
class Colours {
public:
    Colours(Memory& memory, int64_t changes) : steps_(memory.array<Step>(2 * changes + 1)) {}

    static bool needs_mean(const ImagePass& pass, int64_t image) {
        for (int64_t change = 0; change < pass.changes; ++change)
            if ((pass.kinds[image * pass.changes + change] & ~kClipped) == kContrast) return true;
        return false;
    }

    void prepare(const ImagePass& pass, int64_t image, const Kept& kept) {
        count_ = 0;
        matrix_ = Matrix::scale(1.0 / 255);
        for (int64_t change = 0; change < pass.changes; ++change) {
            const int64_t number = image * pass.changes + change;
            const int32_t kind = pass.kinds[number] & ~kClipped;
            const float* factors = pass.factors + 12 * number;
            const bool clips = (pass.kinds[number] & kClipped) != 0;
            if (kind == kHue && pass.channels == 3) {
                flush();
                Step& step = steps_[count_++];
                step = Step{};
                step.hue = true;
                step.turn = factors[0];
                step.clipped = clips;
                continue;
            }
            matrix_ = linear(kind, factors, pass.channels, kept).after(matrix_);
            if (!clips) continue;
            steps_[count_++] = matrix_.step(true);
            matrix_ = Matrix::scale(1);
        }
        flush();
    }

    template <int channels>
    void row(const uint8_t* const* from, int64_t width, float* const* to) const {
        colour_row<channels>(steps_, count_, from, width, to);
    }

private:
    Step* steps_;
    int64_t count_ = 0;
    Matrix matrix_{};

    void flush() {
        if (matrix_.identity()) return;
        steps_[count_++] = matrix_.step(false);
        matrix_ = Matrix::scale(1);
    }

    // Changes that are a matrix once the mean is known.
    Matrix linear(int32_t kind, const float* factors, int64_t channels, const Kept& kept) {
        const double factor = factors[0], rest = 1 - factor;
        Matrix matrix = Matrix::scale(1);
        if (kind == kBrightness) matrix = Matrix::scale(factor);
        if (kind == kAffine) {
            for (int number = 0; number < 12; ++number) matrix.rows[number / 4][number % 4] = factors[number];
            if (channels == 1) matrix.rows[0][1] = matrix.rows[0][2] = 0;
        }
        if (kind == kContrast) {
            matrix = Matrix::scale(factor);
            const double grey = mean(channels, kept);
            for (auto& row : matrix.rows) row[3] = rest * grey;
        }
        if (kind == kSaturation && channels == 3) {
            matrix = Matrix::scale(factor);
            for (auto& row : matrix.rows)
                for (int column = 0; column < 3; ++column) row[column] += rest * kLuma[column];
        }
        return matrix;
    }

    // Of grey, over the image as it is after all changes so far.
    double mean(int64_t channels, const Kept& kept) {
        double means[3];
        if (count_ == 0) {  // a matrix so far, and the mean of what it makes is what it makes of the mean
            double before[3];
            for (int c = 0; c < 3; ++c) before[c] = static_cast<double>(kept.sums[c]) / kept.pixels();
            for (int c = 0; c < 3; ++c) {
                const double* row = matrix_.rows[c];
                means[c] = row[0] * before[0] + row[1] * before[1] + row[2] * before[2] + row[3];
            }
        } else {
            flush();
            channels == 3 ? kept.means_after<3>(steps_, count_, means) : kept.means_after<1>(steps_, count_, means);
        }
        if (channels == 1) return means[0];
        return kLuma[0] * means[0] + kLuma[1] * means[1] + kLuma[2] * means[2];
    }
};

}  // namespace
}  // namespace engine::ENGINE_ISA
