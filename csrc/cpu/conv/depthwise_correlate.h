// Forward and gradient of the images: the image read, a vector of channels at a time, by blocks of outputs.
//
// Two ways to read it. In place, for small kernels, which are bound by memory and would pay for a copy as much as for
// the sums; the few outputs at the left and right edge are then computed one by one with the taps that they have. Or
// through a band, for larger kernels (more outputs have missing taps, and each vector is read more often) and for
// the vector that the channels do not fill.
#pragma once

#include "depthwise_band.h"
#include "depthwise_block.h"

namespace engine::ENGINE_ISA {
namespace {

constexpr int64_t kTapsInPlace = 9;         // most taps of a kernel whose input is read in place
constexpr int64_t kRowsInPlace = 8;         // rows of outputs of one piece of work, even
constexpr int64_t kBandBytes = 256 * 1024;  // about what a band may take of the second-level cache

// How a call is cut into independent pieces: an image, a phase of its rows, a band of them, and vectors of channels.
struct CorrelatePlan {
    Direction direction;
    AxisShape rows, columns;
    int64_t batch, channels, taps;
    int64_t row_phases, column_phases, band_rows, bands, band_width;
    int64_t in_place;  // vectors that are read in place; those after it go through bands, one at a time
    int64_t pieces;    // of vectors: all in place are one
    int64_t band_elements;
    bool prefetch;
};

template <typename T>
inline CorrelatePlan correlate_plan(const ConvShape& s, Direction direction) {
    CorrelatePlan p{};
    p.direction = direction;
    p.rows = rows_of(s);
    p.columns = columns_of(s);
    p.batch = s.batch;
    p.channels = s.channels;
    p.taps = s.kernel_h * s.kernel_w;
    p.row_phases = phases_of(p.rows, direction);
    p.column_phases = phases_of(p.columns, direction);
    p.in_place = p.taps <= kTapsInPlace ? s.channels / kLanes<T> : 0;
    p.pieces = ceil_div(s.channels, kLanes<T>) - p.in_place + (p.in_place ? 1 : 0);
    for (int64_t phase = 0; phase < p.column_phases; ++phase) {
        const Axis columns = axis_of(p.columns, direction, phase);
        p.band_width = larger(p.band_width, reach(columns, columns.outputs));
    }
    const int64_t row_bytes = p.band_width * kVectorBytes;
    const Axis rows = axis_of(p.rows, direction, 0);  // no phase has more outputs
    int64_t tallest = 1;
    for (int64_t phase = 0; phase < p.row_phases; ++phase)
        tallest = larger(tallest, reach(axis_of(p.rows, direction, phase), 1));
    p.band_rows = (larger(kBandBytes / row_bytes - tallest, 1) / rows.in_step + 2) / 2 * 2;
    if (p.in_place) p.band_rows = smaller(p.band_rows, kRowsInPlace);
    p.band_rows = smaller(p.band_rows, rows.outputs);
    p.bands = ceil_div(rows.outputs, p.band_rows);
    const int64_t pixels = s.height * s.width + s.out_h * s.out_w;
    p.prefetch = s.batch * pixels * s.channels * static_cast<int64_t>(sizeof(T)) > kPrefetchBytes;
    p.band_elements = ((p.band_rows - 1) * rows.in_step + tallest) * p.band_width * kLanes<T>;
    return p;
}

// What the blocks of a piece of work are computed from.
template <typename T>
struct CorrelateSource {
    const T* input;
    int64_t input_row, input_pixel;  // elements from row to row, from pixel to pixel
    int64_t skipped_rows;            // the first row that is present
    bool in_place;                   // the input is the image itself, not a band
    const T *weight, *bias;          // of the first vector of channels
    T* output;                       // channel 0 of the image
    int64_t first_vector, last_vector;
};

// Asks for what the block `row_count` rows below will be the first to read, and for the outputs that it will write.
template <typename T>
ENGINE_INLINE void prefetch(const CorrelateSource<T>& source, const Axis& rows, const Axis& columns, int64_t row,
                            int64_t row_count, Range range, int64_t vector, const Block<T>& block) {
    const int64_t width = range.last - range.first;
    if (source.in_place) {
        const int64_t next = rows.in_first + row * rows.in_step + (rows.taps - 1) * rows.dilation;
        for (int64_t r = larger(0, next); r < smaller(rows.inputs, next + row_count * rows.in_step); ++r) {
            const int64_t from = r * source.input_row + range.first * columns.in_step * source.input_pixel;
            for (int64_t c = 0; c < width * columns.in_step; ++c)
                if (range.first * columns.in_step + c < columns.inputs)
                    __builtin_prefetch(source.input + (from + c * source.input_pixel + vector * kLanes<T>));
        }
    }
    const int64_t last = row_count + smaller(row_count, rows.outputs - row);
    for (int64_t r = row_count; r < last; ++r)
        for (int64_t c = 0; c < width; ++c)
            __builtin_prefetch(block.output + (r * block.output_row + c * block.output_column), 1);
}

// One or two rows of outputs from `row` on: the columns `range`, which have the taps `taps` of a row, in blocks.
template <typename T>
inline void correlate_columns(const CorrelatePlan& p, const CorrelateSource<T>& source, const Axis& rows,
                              const Axis& columns, int64_t row, int64_t row_count, Range range, Range taps) {
    Axis reading = rows;  // of two rows of outputs, the second takes the input's rows one later
    reading.taps += row_count - 1;
    Block<T> block{};
    block.input_row = rows.dilation * source.input_row;
    block.input_column = columns.in_step * source.input_pixel;
    block.input_tap = columns.dilation * source.input_pixel;
    block.weight_offset = (rows.tap_first * p.columns.kernel + columns.tap_first) * kLanes<T>;
    block.weight_row = rows.tap_step * p.columns.kernel * kLanes<T>;
    block.weight_tap = columns.tap_step * kLanes<T>;
    block.tap_rows = rows.taps;
    block.rows = taps_inside(reading, row);
    block.taps = taps;
    const int64_t pixels = p.direction == Direction::forward ? p.columns.out : p.columns.image;
    block.output_row = pixels * p.channels * rows.out_step;
    block.output_column = columns.out_step * p.channels;

    const int64_t input_row = (rows.in_first + row * rows.in_step - source.skipped_rows) * source.input_row;
    const int64_t output_row = (rows.out_first + row * rows.out_step) * pixels;
    const bool dense = block.input_tap == block.input_column;
    const int64_t widest = block_columns(row_count, taps.last - taps.first, dense);
    const int64_t count = range.last - range.first, blocks = ceil_div(count, widest);
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t column = range.first + count * b / blocks;
        const int64_t width = range.first + count * (b + 1) / blocks - column;
        const int64_t output = output_row + columns.out_first + column * columns.out_step;
        for (int64_t v = source.first_vector; v < source.last_vector; ++v) {
            const int64_t vector = v - source.first_vector, channel = v * kLanes<T>;
            block.input = source.input + vector * kLanes<T>;
            block.input_offset = input_row + (columns.in_first + column * columns.in_step) * source.input_pixel;
            block.weight = source.weight + vector * p.taps * kLanes<T>;
            block.bias = source.bias ? source.bias + vector * kLanes<T> : nullptr;
            block.output = source.output + output * p.channels + channel;
            block.lanes = smaller(kLanes<T>, p.channels - channel);
            if (p.prefetch && width > 1)
                prefetch(source, rows, columns, row + row_count, row_count, {column, column + width}, vector, block);
            compute(row_count, width, block);
        }
    }
}

// All columns of the rows `band`. With `inside` only those outputs read together whose taps are all there.
// fetch(rows): called before these are computed.
template <typename T, typename Fetch>
inline void correlate_rows(const CorrelatePlan& p, const CorrelateSource<T>& source, const Axis& rows,
                           const Axis& columns, Range band, Range inside, Fetch fetch) {
    const bool pairs = rows.in_step == 1 && rows.dilation == 1 && rows.taps > 0;
    for (int64_t row = band.first, count; row < band.last; row += count) {
        count = pairs && row + 1 < band.last ? 2 : 1;
        fetch({row, row + count});
        for (int64_t q = 0; q < inside.first; ++q)
            correlate_columns(p, source, rows, columns, row, count, {q, q + 1}, taps_inside(columns, q));
        correlate_columns(p, source, rows, columns, row, count, inside, {0, columns.taps});
        for (int64_t q = inside.last; q < columns.outputs; ++q)
            correlate_columns(p, source, rows, columns, row, count, {q, q + 1}, taps_inside(columns, q));
    }
}

// The piece of work number `index`: an image, a phase of rows, a band and some vectors of channels.
template <typename T>
inline void correlate_piece(const CorrelatePlan& p, const ConvCall& call, const T* weight, T* workspace,
                            int64_t index) {
    const int64_t piece = index % p.pieces, band = index / p.pieces % p.bands;
    const int64_t phase = index / p.pieces / p.bands % p.row_phases;
    const int64_t number = index / p.pieces / p.bands / p.row_phases;
    const bool in_place = p.in_place && piece == 0;

    const bool forward = p.direction == Direction::forward;
    const int64_t in_pixels = forward ? p.columns.image : p.columns.out;
    const int64_t in_size = (forward ? p.rows.image : p.rows.out) * in_pixels * p.channels;
    const int64_t out_size = forward ? p.rows.out * p.columns.out : p.rows.image * p.columns.image;
    const Axis rows = axis_of(p.rows, p.direction, phase);
    const Range range{band * p.band_rows, smaller(rows.outputs, (band + 1) * p.band_rows)};
    if (range.first >= range.last) return;

    CorrelateSource<T> source{};
    source.first_vector = in_place ? 0 : p.in_place + piece - (p.in_place ? 1 : 0);
    source.last_vector = in_place ? p.in_place : source.first_vector + 1;
    const int64_t channel = source.first_vector * kLanes<T>;
    const T* input = static_cast<const T*>(call.left) + number * in_size + channel;
    source.weight = weight + channel * p.taps;
    source.bias = call.bias ? static_cast<const T*>(call.bias) + channel : nullptr;
    source.output = static_cast<T*>(call.out) + number * out_size * p.channels;
    for (int64_t c = 0; c < p.column_phases; ++c) {
        Axis columns = axis_of(p.columns, p.direction, c);
        if (in_place) {
            source.input = input;
            source.input_row = in_pixels * p.channels;
            source.input_pixel = p.channels;
            source.in_place = true;
            correlate_rows(p, source, rows, columns, range, outputs_inside(columns), [](Range) {});
            continue;
        }
        const int64_t width = reach(columns, columns.outputs);
        const Range present = band_rows(rows, range);
        source.input = workspace;
        source.input_row = width * kLanes<T>;
        source.input_pixel = kLanes<T>;
        source.skipped_rows = present.first;
        const Pixels<T> image{input,      rows.inputs, columns.inputs,
                              p.channels, smaller(kLanes<T>, p.channels - channel), p.prefetch};
        const int64_t first_column = columns.in_first;
        columns.in_first = 0;  // where the band begins
        int64_t copied = present.first;
        correlate_rows(p, source, rows, columns, range, {0, columns.outputs}, [&](Range next) {
            const int64_t last = band_rows(rows, next).last;
            if (last <= copied) return;
            copy_band(image, {copied, last}, first_column, width,
                      workspace + (copied - present.first) * width * kLanes<T>);
            copied = last;
        });
    }
}

}  // namespace
}  // namespace engine::ENGINE_ISA
