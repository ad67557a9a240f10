// Gradient of the weight of a depthwise convolution: per channel and tap, a sum over all images and places.
//
// A tile of taps is held in registers while a run of rows of the gradient passes by, each of its vectors used for
// all of the tile. The sums of such runs, of bands and of parts of the batch are formed one level after the other
// (and the longest level with Kahan's compensation), so that rounding errors do not grow with the sums. How the sums
// are split depends on the shape alone, so that any number of threads gives the same bits.
#pragma once

#include "depthwise_band.h"

namespace engine::ENGINE_ISA {
namespace {

// Largest tile of taps: up to kTileTaps sums, so that a vector of the gradient stays in a register beside them.
constexpr int kTileTaps = kVectorRegisters == 32 ? 28 : 12;
constexpr int kTileWidth = kVectorRegisters == 32 ? 14 : 7;
constexpr int kTileHeight = 5;
constexpr int64_t kRunTerms = 256;                // products that are summed up one after the other
constexpr int64_t kWeightBandBytes = 192 * 1024;  // about what a band may take of the second-level cache
constexpr int64_t kSharedPieces = 32;             // pieces of work that give some threads enough to share

struct WeightPlan {
    Axis rows, columns;
    int64_t batch, channels, taps, vectors;
    int64_t band_rows, bands, image_width, image_rows;  // of a band
    int64_t parts;                                      // of all bands of all images; each is summed up on its own
    int64_t run_rows;                                   // rows of the gradient summed up one after the other
    int64_t thread_elements, partial_elements;
    bool prefetch;
};

template <typename T>
inline WeightPlan weight_plan(const ConvShape& s) {
    WeightPlan p{};
    p.rows = forward_axis(rows_of(s));
    p.columns = forward_axis(columns_of(s));
    p.batch = s.batch;
    p.channels = s.channels;
    p.taps = s.kernel_h * s.kernel_w;
    p.vectors = ceil_div(s.channels, kLanes<T>);
    p.image_width = reach(p.columns, s.out_w);
    p.run_rows = larger(1, kRunTerms / s.out_w);
    const int64_t pixels = s.height * s.width + s.out_h * s.out_w;
    p.prefetch = s.batch * pixels * s.channels * static_cast<int64_t>(sizeof(T)) > kPrefetchBytes;
    const int64_t row_bytes = p.image_width * s.stride_h * kVectorBytes;
    p.band_rows = smaller(s.out_h, larger(1, kWeightBandBytes / row_bytes));
    p.bands = ceil_div(s.out_h, p.band_rows);
    p.image_rows = reach(p.rows, p.band_rows);
    p.parts = smaller(p.batch * p.bands, ceil_div(kSharedPieces, p.vectors));
    p.thread_elements = (p.image_rows * p.image_width + p.run_rows * s.out_w + 2 * p.taps) * kLanes<T>;
    p.partial_elements = p.parts * p.vectors * p.taps * kLanes<T>;
    return p;
}

// The bands that a tile of taps is summed over: rows of the gradient, and those of the image below its first tap.
template <typename T>
struct WeightRun {
    const T *gradient, *image;
    int64_t rows, columns;
    int64_t image_row, image_column;   // elements from one place of the gradient to the next
    int64_t image_tap_row, image_tap;  // and from one tap to the next
    T* sums;                           // added to; of the tile's first tap
    int64_t sums_row;
};

template <typename T, int height, int width, int fixed_tap>
inline void sum_tile(const WeightRun<T>& run) {
    const int64_t tap = fixed_tap ? fixed_tap : run.image_tap;
    Vector<T> sums[height][width] = {};
    const T* gradient = run.gradient;
    for (int64_t row = 0; row < run.rows; ++row) {
        int64_t place = row * run.image_row;
        for (int64_t q = 0; q < run.columns; ++q, gradient += kLanes<T>, place += run.image_column) {
            const Vector<T> factor = load(gradient);
#pragma GCC unroll 8
            for (int i = 0; i < height; ++i)
#pragma GCC unroll 16
                for (int j = 0; j < width; ++j)
                    sums[i][j] += factor * load(run.image + (place + i * run.image_tap_row + j * tap));
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < height; ++i)
#pragma GCC unroll 16
        for (int j = 0; j < width; ++j) {
            T* sum = run.sums + i * run.sums_row + j * kLanes<T>;
            store(sum, load(sum) + sums[i][j]);
        }
}

template <typename T, int height = kTileHeight, int width = kTileWidth>
inline void sum_tile(int64_t rows, int64_t taps, const WeightRun<T>& run) {
    if constexpr (height > 1)
        if (rows < height) return sum_tile<T, height - 1, width>(rows, taps, run);
    if constexpr (width > 1)
        if (width * height > kTileTaps || taps < width) return sum_tile<T, height, width - 1>(rows, taps, run);
    if constexpr (width * height <= kTileTaps) {
        if (run.image_tap == kLanes<T>) return sum_tile<T, height, width, kLanes<T>>(run);
        sum_tile<T, height, width, 0>(run);
    }
}

// Adds to sums[taps][lanes] a run of rows of the gradient that have the taps `valid` in common.
template <typename T>
inline void sum_run(const WeightPlan& p, WeightRun<T> run, Range valid, T* sums) {
    const T* image = run.image;
    const int64_t tile_width = smaller(kTileWidth, p.columns.taps);
    const int64_t across = ceil_div(p.columns.taps, tile_width);
    const int64_t tile_height = smaller(kTileHeight, kTileTaps / ceil_div(p.columns.taps, across));
    const int64_t down = ceil_div(valid.last - valid.first, tile_height);
    for (int64_t a = 0; a < down; ++a) {
        const int64_t i = valid.first + (valid.last - valid.first) * a / down;
        const int64_t height = valid.first + (valid.last - valid.first) * (a + 1) / down - i;
        for (int64_t b = 0; b < across; ++b) {
            const int64_t j = p.columns.taps * b / across, width = p.columns.taps * (b + 1) / across - j;
            run.image = image + (i - valid.first) * run.image_tap_row + j * run.image_tap;
            run.sums = sums + i * run.sums_row + j * kLanes<T>;
            sum_tile<T>(height, width, run);
        }
    }
}

// Rows of the gradient from `row` on that have their taps in common, as many as may be summed up at once.
inline int64_t common_rows(const WeightPlan& p, Range rows, int64_t row) {
    const Range valid = taps_inside(p.rows, row);
    int64_t count = 1;
    for (; count < p.run_rows && row + count < rows.last; ++count) {
        const Range next = taps_inside(p.rows, row + count);
        if (next.first != valid.first || next.last != valid.last) break;
    }
    return count;
}

// sums[taps][lanes] = of one band of one image. Rows are copied when they are first needed, and are then still in the
// first-level cache.
template <typename T>
inline void sum_band(const WeightPlan& p, const Pixels<T>& gradient, const Pixels<T>& image, Range rows,
                     T* workspace, T* sums) {
    T* gradient_rows = workspace;
    T* image_band = gradient_rows + p.run_rows * gradient.width * kLanes<T>;
    const Range present = band_rows(p.rows, rows);
    int64_t copied = present.first;
    for (int64_t e = 0; e < p.taps * kLanes<T>; ++e) sums[e] = 0;

    WeightRun<T> run{};
    run.gradient = gradient_rows;
    run.columns = gradient.width;
    run.image_column = p.columns.in_step * kLanes<T>;
    run.image_row = p.rows.in_step * p.image_width * kLanes<T>;
    run.image_tap = p.columns.dilation * kLanes<T>;
    run.image_tap_row = p.rows.dilation * p.image_width * kLanes<T>;
    run.sums_row = p.columns.taps * kLanes<T>;
    for (int64_t row = rows.first; row < rows.last; row += run.rows) {
        const Range valid = taps_inside(p.rows, row);
        run.rows = common_rows(p, rows, row);
        if (valid.first == valid.last) continue;
        const int64_t last = band_rows(p.rows, {row, row + run.rows}).last;
        if (last > copied)
            copy_band(image, {copied, last}, p.columns.in_first, p.image_width,
                      image_band + (copied - present.first) * p.image_width * kLanes<T>);
        copied = larger(copied, last);
        copy_band(gradient, {row, row + run.rows}, 0, gradient.width, gradient_rows);
        const int64_t top = p.rows.in_first + row * p.rows.in_step + valid.first * p.rows.dilation;
        run.image = image_band + (top - present.first) * p.image_width * kLanes<T>;
        sum_run(p, run, valid, sums);
    }
}

// partial[taps][lanes] of one part of all bands of all images, for one vector of channels.
template <typename T>
inline void sum_part(const WeightPlan& p, const ConvCall& call, int64_t part, int64_t vector, T* workspace,
                     T* partial) {
    const int64_t items = p.batch * p.bands;
    const int64_t first = items * part / p.parts, last = items * (part + 1) / p.parts;
    T* sums = workspace;
    T* lost = sums + p.taps * kLanes<T>;
    for (int64_t e = 0; e < p.taps * kLanes<T>; ++e) partial[e] = lost[e] = 0;

    const int64_t channel = vector * kLanes<T>, lanes = smaller(kLanes<T>, p.channels - channel);
    const T* gradients = static_cast<const T*>(call.left) + channel;
    const T* images = static_cast<const T*>(call.right) + channel;
    Pixels<T> gradient{gradients, p.rows.outputs, p.columns.outputs, p.channels, lanes, p.prefetch};
    Pixels<T> pixels{images, p.rows.inputs, p.columns.inputs, p.channels, lanes, p.prefetch};
    for (int64_t item = first; item < last; ++item) {
        const int64_t image = item / p.bands, band = item % p.bands;
        const Range rows{band * p.band_rows, smaller(p.rows.outputs, (band + 1) * p.band_rows)};
        gradient.data = gradients + image * gradient.height * gradient.width * p.channels;
        pixels.data = images + image * pixels.height * pixels.width * p.channels;
        sum_band(p, gradient, pixels, rows, lost + p.taps * kLanes<T>, sums);
        for (int64_t e = 0; e < p.taps * kLanes<T>; e += kLanes<T>) {  // Kahan's sum
            const Vector<T> before = load(partial + e), term = load(sums + e) - load(lost + e);
            const Vector<T> after = before + term;
            store(lost + e, (after - before) - term);
            store(partial + e, after);
        }
    }
}

// The parts' sums, in the layout of the weight: out[channels][taps].
template <typename T>
inline void join_parts(const WeightPlan& p, const T* partial, int64_t vector, T* out) {
    const int64_t size = p.taps * kLanes<T>;
    const int64_t lanes = smaller(kLanes<T>, p.channels - vector * kLanes<T>);
    for (int64_t tap = 0; tap < p.taps; ++tap) {
        Vector<T> sum{};
        for (int64_t part = 0; part < p.parts; ++part)
            sum += load(partial + (part * p.vectors + vector) * size + tap * kLanes<T>);
        for (int64_t lane = 0; lane < lanes; ++lane) out[(vector * kLanes<T> + lane) * p.taps + tap] = sum[lane];
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
