// Two-dimensional real transforms of square tiles of an NHWC array, one vector of channels at a time.
//
// A tile of real numbers has a spectrum with the symmetry X(-i, -j) = conj X(i, j), so half of it says all: the columns
// 0 to size / 2, of the first and the last of which the rows 0 to size / 2 suffice. Two rows of the tile are
// transformed as one, as real and imaginary part, and so are those two columns.
#pragma once

#include "../../simd/fft.h"

namespace engine::ENGINE_ISA {
namespace {

// Frequencies that are kept of a tile; four of them are real, and are kept as complex numbers like the others.
constexpr int64_t frequencies(int64_t size) { return size * size / 2 + 2; }

// Memory that a transform works in, in vectors: `size` rows of half a spectrum.
constexpr int64_t tile_vectors(int64_t size) { return size * (size / 2 + 1) * 2; }

// Where the elements of a tile lie: at base + rows[i] + columns[j]. A negative offset: not in the array, which then
// counts as zero there, and is not written.
template <typename T, typename Base = const T>
struct Tile {
    Base* base;
    const int64_t* rows;
    const int64_t* columns;
    int64_t lanes;  // channels of the vector that exist
};

// Where a spectrum lies: frequency f at data + f * stride, a vector of real parts and one of imaginary parts. The
// spectrum transformed next lies `next` elements further: as each frequency is on a page of its own, where the
// processor foresees nothing, its memory is fetched while this one's is used.
template <typename T, typename Data = T>
struct Spectrum {
    Data* data;
    int64_t stride, next;

    template <int write>
    ENGINE_INLINE Data* at(int64_t frequency) const {
        Data* value = data + frequency * stride;
        // Not a pointer, as it may lie outside of the array.
        const uintptr_t ahead = reinterpret_cast<uintptr_t>(value) + next * sizeof(T);
        __builtin_prefetch(reinterpret_cast<const void*>(ahead), write, 2);
        if (kVectorBytes == 64) __builtin_prefetch(reinterpret_cast<const void*>(ahead + 64), write, 2);
        return value;
    }
};

// Which frequency column j and row i are: columns 1 to size / 2 - 1, then what is kept of column 0 and size / 2.
template <int size>
constexpr int64_t frequency(int64_t row, int64_t column) {
    if (column == 0) return (size / 2 - 1) * size + row;
    if (column == size / 2) return (size / 2 - 1) * size + size / 2 + 1 + row;
    return (column - 1) * size + row;
}

// Channels that do not fill a vector are rare: not inlined, so that the transforms stay small.
template <typename T>
__attribute__((noinline)) Vector<T> load_tail(const T* from, int64_t lanes) {
    return load_some(from, lanes);
}
template <typename T>
__attribute__((noinline)) void store_tail(T* to, Vector<T> values, int64_t lanes) {
    store_some(to, values, lanes);
}
template <typename T>
ENGINE_INLINE Vector<T> load_lanes(const T* from, int64_t lanes) {
    return lanes == kLanes<T> ? load(from) : load_tail(from, lanes);
}
template <typename T>
ENGINE_INLINE void store_lanes(T* to, Vector<T> values, int64_t lanes) {
    if (lanes == kLanes<T>) return store(to, values);
    store_tail(to, values, lanes);
}

template <typename T>
ENGINE_INLINE void put(Spectrum<T> spectrum, int64_t frequency, Complex<T> value) {
    T* to = spectrum.template at<1>(frequency);
    store(to, value.re);
    store(to + kLanes<T>, value.im);
}
template <typename T>
ENGINE_INLINE Complex<T> get(Spectrum<T, const T> spectrum, int64_t frequency) {
    const T* from = spectrum.template at<0>(frequency);
    return {load(from), load(from + kLanes<T>)};
}

// The spectra of the real sequences a and b, where (z, partner) are two values of that of a + ib, at k and -k; twice
// too large, which the inverse transform makes good.
template <typename T>
ENGINE_INLINE Complex<T> first_of_two(Complex<T> z, Complex<T> partner) {
    return {z.re + partner.re, z.im - partner.im};
}
template <typename T>
ENGINE_INLINE Complex<T> second_of_two(Complex<T> z, Complex<T> partner) {
    return {z.im + partner.im, partner.re - z.re};
}
// And back: the spectrum of a + ib at k, and at -k.
template <typename T>
ENGINE_INLINE Complex<T> joined(Complex<T> a, Complex<T> b) {
    return {a.re - b.im, a.im + b.re};
}
template <typename T>
ENGINE_INLINE Complex<T> joined_partner(Complex<T> a, Complex<T> b) {
    return {a.re + b.im, b.re - a.im};
}

// spectrum = twice the transform of the tile. work: tile_vectors(size) vectors.
template <typename T, int size>
void transform_tile(Tile<T> tile, Complex<T>* work, Spectrum<T> spectrum) {
    constexpr int half = size / 2, width = half + 1;
    const Complex<T> zero = {Vector<T>{}, Vector<T>{}};
    const int64_t* columns = tile.columns;
    for (int row = 0; row < size; row += 2) {
        Complex<T>*first = work + row * width, *second = first + width;
        const bool has_first = tile.rows[row] >= 0, has_second = tile.rows[row + 1] >= 0;
        if (!has_first && !has_second) {
            for (int j = 0; j < 2 * width; ++j) first[j] = zero;
            continue;
        }
        const T* a = tile.base + (has_first ? tile.rows[row] : 0);
        const T* b = tile.base + (has_second ? tile.rows[row + 1] : 0);
        const int64_t lanes_a = has_first ? tile.lanes : 0, lanes_b = has_second ? tile.lanes : 0;
        const auto in = [=](int j) -> Complex<T> {
            if (columns[j] < 0) return zero;
            return {load_lanes(a + columns[j], lanes_a), load_lanes(b + columns[j], lanes_b)};
        };
        const auto ends = [=](Complex<T> z, Complex<T> middle) {
            first[0] = first_of_two(z, z);
            second[0] = second_of_two(z, z);
            first[half] = first_of_two(middle, middle);
            second[half] = second_of_two(middle, middle);
        };
        const auto pair = [=](int k, Complex<T> z, Complex<T> partner) {
            first[k] = first_of_two(z, partner);
            second[k] = second_of_two(z, partner);
        };
        transform<T, size>(in, ends, pair);
    }
    for (int column = 1; column < half; ++column)
        transform<T, size>([=](int i) { return work[i * width + column]; },
                           [=](Complex<T> z, Complex<T> middle) {
                               put(spectrum, frequency<size>(0, column), z);
                               put(spectrum, frequency<size>(half, column), middle);
                           },
                           [=](int k, Complex<T> z, Complex<T> partner) {
                               put(spectrum, frequency<size>(k, column), z);
                               put(spectrum, frequency<size>(size - k, column), partner);
                           });
    // Both are twice too large already; what taking them apart doubles once more is halved.
    const auto both = [=](int k, Complex<T> z, Complex<T> partner) {
        put(spectrum, frequency<size>(k, 0), scaled(first_of_two(z, partner), 0.5));
        put(spectrum, frequency<size>(k, half), scaled(second_of_two(z, partner), 0.5));
    };
    transform<T, size>([=](int i) -> Complex<T> { return {work[i * width].re, work[i * width + half].re}; },
                       [=](Complex<T> z, Complex<T> middle) { both(0, z, z), both(half, middle, middle); }, both);
}

// tile = the inverse transform of the spectrum, which is the product of two of transform_tile, + bias.
template <typename T, int size>
void invert_tile(Spectrum<T, const T> spectrum, Complex<T>* work, Vector<T> bias, Tile<T, T> tile) {
    constexpr int half = size / 2, width = half + 1;
    const T scale = static_cast<T>(1.0 / (2 * size * 2 * size));
    for (int column = 1; column < half; ++column)
        transform<T, size>([=](int i) { return exchanged(get(spectrum, frequency<size>(i, column))); },
                           [=](Complex<T> z, Complex<T> middle) {
                               work[column] = exchanged(z);
                               work[half * width + column] = exchanged(middle);
                           },
                           [=](int k, Complex<T> z, Complex<T> partner) {
                               work[k * width + column] = exchanged(z);
                               work[(size - k) * width + column] = exchanged(partner);
                           });
    const auto both = [=](int i, Complex<T> z) {
        work[i * width] = {z.im, Vector<T>{}};
        work[i * width + half] = {z.re, Vector<T>{}};
    };
    transform<T, size>(
        [=](int i) {
            const int row = i < half ? i : size - i;
            const Complex<T> a = get(spectrum, frequency<size>(row, 0)), b = get(spectrum, frequency<size>(row, half));
            return exchanged(i < half ? joined(a, b) : joined_partner(a, b));
        },
        [=](Complex<T> z, Complex<T> middle) { both(0, z), both(half, middle); },
        [=](int k, Complex<T> z, Complex<T> partner) { both(k, z), both(size - k, partner); });
    for (int row = 0; row < size; row += 2) {
        const bool has_first = tile.rows[row] >= 0, has_second = tile.rows[row + 1] >= 0;
        if (!has_first && !has_second) continue;
        const Complex<T>*first = work + row * width, *second = first + width;
        const auto write = [=](int j, Complex<T> z) {
            if (tile.columns[j] < 0) return;
            T* to = tile.base + tile.columns[j];
            if (has_first) store_lanes(to + tile.rows[row], z.im * scale + bias, tile.lanes);
            if (has_second) store_lanes(to + tile.rows[row + 1], z.re * scale + bias, tile.lanes);
        };
        transform<T, size>(
            [=](int j) {
                const int k = j < half ? j : size - j;
                return exchanged(j < half ? joined(first[k], second[k]) : joined_partner(first[k], second[k]));
            },
            [=](Complex<T> z, Complex<T> middle) { write(0, z), write(half, middle); },
            [=](int k, Complex<T> z, Complex<T> partner) { write(k, z), write(size - k, partner); });
    }
}

// The transforms of every size that is offered.
template <typename T>
struct TileTransform {
    int64_t size;
    void (*forward)(Tile<T>, Complex<T>* work, Spectrum<T>);
    void (*inverse)(Spectrum<T, const T>, Complex<T>* work, Vector<T> bias, Tile<T, T>);
};
template <typename T, int size>
constexpr TileTransform<T> kTileTransform = {size, transform_tile<T, size>, invert_tile<T, size>};

constexpr int64_t kTileSizes[] = {16, 24, 32, 48, 64}, kLargestTile = 64;

template <typename T>
const TileTransform<T>& tile_transform(int64_t size) {
    if (size == 16) return kTileTransform<T, 16>;
    if (size == 24) return kTileTransform<T, 24>;
    if (size == 32) return kTileTransform<T, 32>;
    if (size == 48) return kTileTransform<T, 48>;
    return kTileTransform<T, 64>;
}

}  // namespace
}  // namespace engine::ENGINE_ISA
