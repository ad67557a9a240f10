// The inner loops of a depthwise convolution: a block of outputs of one vector of channels, sums held in registers.
//
// One or two rows of up to kColumns outputs. With two rows every vector of the input that is loaded serves both, each
// with its own row of the weight: 16 loads for 28 multiplications, where one row alone would need 15 for 14. Where 32
// registers also hold both rows of 3, 5 or 7 weights, a vector of the input serves all of their taps as well: 2 x 8
// outputs take 28 loads for 112 multiplications.
#pragma once

#include "depthwise_axis.h"

namespace engine::ENGINE_ISA {
namespace {

// 2 x 14 sums, 2 weights and a vector of the input of 32 registers; 2 x 6 of 16.
constexpr int kColumns = kVectorRegisters == 32 ? 14 : 6;

// Keeps GCC from reading a value again for every use of it instead of holding it in a register: 8 to 15 % faster.
template <typename V>
ENGINE_INLINE void in_register(V& value) {
#if defined(__x86_64__)
    asm("" : "+v"(value));
#endif
}

// Strides and offsets are in elements, and offsets are those of tap (0, 0), which may lie outside of the input.
template <typename T>
struct Block {
    const T* input;
    int64_t input_offset, input_row, input_column, input_tap;  // steps: a tap down, an output right, a tap right
    const T* weight;                                           // [kernel_h][kernel_w][lanes] of this vector
    int64_t weight_offset, weight_row, weight_tap;             // steps: a tap down, a tap right; may be negative
    int64_t tap_rows;                                          // of one row of outputs
    Range rows, taps;  // rows of taps and taps of a row to sum; of two rows of outputs, the second's are one later
    const T* bias;     // null: none
    T* output;
    int64_t output_row, output_column, lanes;
};

// Adds one row of the input to the rows first .. last - 1 of the block. fixed_taps: the taps of a row, where outputs
// and taps follow each other pixel by pixel; 0: the general case.
template <typename T, int first, int last, int rows, int columns, int fixed_step, int fixed_taps>
ENGINE_INLINE void add_row(const Block<T>& b, int64_t row, Vector<T> (&sums)[rows][columns]) {
    const int64_t column_step = fixed_step ? fixed_step : b.input_column;
    int64_t input = b.input_offset + row * b.input_row + b.taps.first * b.input_tap;
    int64_t weight = b.weight_offset + (row - first) * b.weight_row + b.taps.first * b.weight_tap;
    if constexpr (fixed_taps > 0) {
        Vector<T> factors[rows][fixed_taps];
#pragma GCC unroll 8
        for (int tap = 0; tap < fixed_taps; ++tap)
#pragma GCC unroll 2
            for (int r = first; r < last; ++r) {
                factors[r][tap] = load(b.weight + (weight + tap * b.weight_tap - (r - first) * b.weight_row));
                in_register(factors[r][tap]);
            }
#pragma GCC unroll 32
        for (int position = 0; position < columns + fixed_taps - 1; ++position) {
            Vector<T> value = load(b.input + (input + position * column_step));
            in_register(value);
#pragma GCC unroll 8
            for (int tap = 0; tap < fixed_taps; ++tap)
#pragma GCC unroll 2
                for (int r = first; r < last; ++r)
                    if (position >= tap && position - tap < columns)
                        sums[r][position - tap] += factors[r][tap] * value;
        }
        return;
    }
    for (int64_t tap = b.taps.first; tap < b.taps.last; ++tap, input += b.input_tap, weight += b.weight_tap) {
        Vector<T> factors[rows];
#pragma GCC unroll 2
        for (int r = first; r < last; ++r) factors[r] = load(b.weight + (weight - (r - first) * b.weight_row));
#pragma GCC unroll 16
        for (int c = 0; c < columns; ++c) {
            Vector<T> value = load(b.input + (input + c * column_step));
            if (last - first > 1) in_register(value);
#pragma GCC unroll 2
            for (int r = first; r < last; ++r) sums[r][c] += factors[r] * value;
        }
    }
}

template <typename T, int rows, int columns, int fixed_step, int fixed_taps>
__attribute__((noinline)) void compute_block(const Block<T>& b) {
    const Vector<T> start = b.bias ? load_some(b.bias, b.lanes) : Vector<T>{};
    Vector<T> sums[rows][columns];
#pragma GCC unroll 2
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < columns; ++c) sums[r][c] = start;

    int64_t row = b.rows.first;
    if constexpr (rows == 2) {
        if (row == 0 && row < b.rows.last) add_row<T, 0, 1, rows, columns, fixed_step, fixed_taps>(b, row++, sums);
        const int64_t shared = smaller(b.tap_rows, b.rows.last);
        for (; row < shared; ++row) add_row<T, 0, 2, rows, columns, fixed_step, fixed_taps>(b, row, sums);
        if (row < b.rows.last) add_row<T, 1, 2, rows, columns, fixed_step, fixed_taps>(b, row, sums);
    } else {
        for (; row < b.rows.last; ++row) add_row<T, 0, 1, rows, columns, fixed_step, fixed_taps>(b, row, sums);
    }

    // Lanes that are no channels are left out by way of a copy: an index known only at run time would make the
    // compiler keep the sums in memory all the time.
    T copy[rows * columns * kLanes<T>];
    const bool whole = b.lanes == kLanes<T>;
    T* to = whole ? b.output : copy;
    const int64_t to_row = whole ? b.output_row : columns * kLanes<T>, to_column = whole ? b.output_column : kLanes<T>;
#pragma GCC unroll 2
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < columns; ++c) store(to + (r * to_row + c * to_column), sums[r][c]);
    if (whole) return;
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c)
            memcpy(b.output + (r * b.output_row + c * b.output_column), copy + (r * columns + c) * kLanes<T>,
                   static_cast<size_t>(b.lanes) * sizeof(T));
}

// Columns of a block of two rows whose sums leave room for both rows' weights: 2 x 3, 2 x 5 or 2 x 7 of them.
constexpr int columns_beside(int taps) { return (kVectorRegisters - 1) / 2 - taps; }

// The widest block for rows of that many taps.
constexpr int64_t block_columns(int64_t rows, int64_t taps, bool dense) {
    const bool fixed = kVectorRegisters == 32 && rows == 2 && dense && (taps == 3 || taps == 5 || taps == 7);
    return fixed ? columns_beside(static_cast<int>(taps)) : kColumns;
}

// A block of `rows` x `columns` outputs; columns: 1 to `most`. fixed_step: what input_column is, 0: known only at
// run time.
template <typename T, int rows, int fixed_step, int fixed_taps, int most>
inline void compute(int64_t columns, const Block<T>& block) {
    if constexpr (most > 1)
        if (columns < most) return compute<T, rows, fixed_step, fixed_taps, most - 1>(columns, block);
    compute_block<T, rows, most, fixed_step, fixed_taps>(block);
}

template <typename T, int fixed_step>
inline void compute(int64_t rows, int64_t columns, const Block<T>& block) {
    if (rows == 1) return compute<T, 1, fixed_step, 0, kColumns>(columns, block);
    if constexpr (kVectorRegisters == 32) {
        const int64_t taps = block.input_tap == block.input_column ? block.taps.last - block.taps.first : 0;
        if (taps == 3 && columns <= columns_beside(3))
            return compute<T, 2, fixed_step, 3, columns_beside(3)>(columns, block);
        if (taps == 5 && columns <= columns_beside(5))
            return compute<T, 2, fixed_step, 5, columns_beside(5)>(columns, block);
        if (taps == 7 && columns <= columns_beside(7))
            return compute<T, 2, fixed_step, 7, columns_beside(7)>(columns, block);
    }
    compute<T, 2, fixed_step, 0, kColumns>(columns, block);
}

template <typename T>
inline void compute(int64_t rows, int64_t columns, const Block<T>& block) {
    if (block.input_column == kLanes<T>) return compute<T, kLanes<T>>(rows, columns, block);
    compute<T, 0>(rows, columns, block);
}

}  // namespace
}  // namespace engine::ENGINE_ISA
