// The kernels of the pass: one writes the output, a thread for each pixel with all its channels; the other computes the
// mean of each image as it is before a certain step, which contrasts need.
#pragma once

#include "divider.h"
#include "image_steps.h"
#include "image_taps.h"
#include "images.h"

namespace engine {
namespace cuda {
namespace {

constexpr int kTileWidth = 32, kTileHeight = 8;  // of the output, a block: a warp's pixels lie side by side
constexpr int kMeanThreads = 1024, kWarpLanes = 32;

struct BFloat16 {
    uint16_t bits;
};

// What both kernels are told.
struct Transform {
    ImageBatch from;
    const Axis* axes;  // [images][2]
    Step* steps;       // [images][most_steps], of which `counts` are used
    const int32_t* counts;
    const Erased* erased;  // [images][boxes]
    const uint8_t* mirrored;
    void* out;
    int64_t image, row, column, channel;  // of the output, in numbers
    float fill[3];
    int height, width, most_steps, boxes;
    int tiles, tiles_across;  // of an image
    Divider by_width;
    bool reflects;
};

// What an image shows at a place (before mirroring), in whole grey levels.
template <int channels>
__device__ __forceinline__ void read_pixel(const Transform& t, int image, int y, int x, float (&colour)[channels]) {
    const Axis &down = t.axes[2 * int64_t(image)], &right = t.axes[2 * int64_t(image) + 1];
    ENGINE_UNROLL
    for (int c = 0; c < channels; ++c) colour[c] = t.fill[c];
    if (!t.reflects && !(shows(down, y) && shows(right, x))) return;
    const Taps rows = taps_at(down, y, t.reflects), columns = taps_at(right, x, t.reflects);
    const int64_t number = t.from.index ? t.from.index[image] : image;
    const uint8_t* line = t.from.memory + number * t.from.image + rows.first * t.from.row +
                          columns.first * t.from.column;
    if (rows.count == 1 && columns.count == 1) {
        ENGINE_UNROLL
        for (int c = 0; c < channels; ++c) colour[c] = float(line[c * t.from.channel]);
        return;
    }
    float sums[channels] = {}, weights_down = 0, weights_right = 0;
    for (int tap = 0; tap < columns.count; ++tap) weights_right += columns.weight(tap);
    for (int row = 0; row < rows.count; ++row, line += t.from.row) {
        float along[channels] = {};
        const uint8_t* pixel = line;
        for (int tap = 0; tap < columns.count; ++tap, pixel += t.from.column) {
            const float weight = columns.weight(tap);
            ENGINE_UNROLL
            for (int c = 0; c < channels; ++c) along[c] = fma(weight, float(pixel[c * t.from.channel]), along[c]);
        }
        const float weight = rows.weight(row);
        weights_down += weight;
        ENGINE_UNROLL
        for (int c = 0; c < channels; ++c) sums[c] = fma(weight, along[c], sums[c]);
    }
    const float share = 1.0f / (weights_down * weights_right);
    ENGINE_UNROLL
    for (int c = 0; c < channels; ++c) colour[c] = rintf(sums[c] * share);  // of two equally near the even one
}

__device__ __forceinline__ void store(uint8_t* to, float value) { *to = uint8_t(value); }
__device__ __forceinline__ void store(float* to, float value) { *to = value; }
// To the nearest, to the even one of two equally near.
__device__ __forceinline__ void store(BFloat16* to, float value) {
    union {
        float number;
        uint32_t bits;
    } of{value};
    const bool is_number = value == value;
    to->bits = is_number ? uint16_t((of.bits + 0x7fff + (of.bits >> 16 & 1)) >> 16) : uint16_t(0x7fc0);
}

template <int channels, typename T>
__global__ void __launch_bounds__(kTileWidth* kTileHeight) write_images(const Transform t) {
    const int image = int(blockIdx.x) / t.tiles, tile = int(blockIdx.x) % t.tiles;
    const int y = tile / t.tiles_across * kTileHeight + int(threadIdx.y);
    const int x = tile % t.tiles_across * kTileWidth + int(threadIdx.x);
    if (y >= t.height || x >= t.width) return;
    float colour[channels];
    read_pixel(t, image, y, t.mirrored[image] ? t.width - 1 - x : x, colour);
    if constexpr (sizeof(T) > 1) {  // bytes stay as they are
        const Step* steps = t.steps + int64_t(image) * t.most_steps;
        const int count = t.counts[image];
        for (int number = 0; number < count; ++number) take_step(steps[number], colour);
    }
    for (int number = 0; number < t.boxes; ++number) {
        const Erased& box = t.erased[int64_t(image) * t.boxes + number];
        const bool inside = y >= box.top && y < box.bottom && x >= box.left && x < box.right;
        ENGINE_UNROLL
        for (int c = 0; c < channels; ++c) colour[c] = inside ? box.value[c] : colour[c];
    }
    T* to = static_cast<T*>(t.out) + image * t.image + y * t.row + x * t.column;
    ENGINE_UNROLL
    for (int c = 0; c < channels; ++c) store(to + c * t.channel, colour[c]);
}

struct WarpSums {
    double of[kMeanThreads / kWarpLanes][3];
};

// A block for each image, which adds its pixels in a fixed order. Before the first step they are whole numbers, and the
// sums exact. Completes step `number` of the images where it needs a mean.
template <int channels>
__global__ void __launch_bounds__(kMeanThreads) complete_step(const Transform t, int number) {
    WarpSums& sums = shared_memory<WarpSums>();
    const int image = int(blockIdx.x), thread = int(threadIdx.x);
    Step* steps = t.steps + int64_t(image) * t.most_steps;
    if (number >= t.counts[image] || !(steps[number].kind & kNeedsMean)) return;  // all threads alike
    double total[channels] = {};
    for (int pixel = thread; pixel < t.height * t.width; pixel += kMeanThreads) {
        const int y = t.by_width.quotient(pixel);
        float colour[channels];
        read_pixel(t, image, y, t.by_width.rest(pixel, y), colour);
        for (int before = 0; before < number; ++before) take_step(steps[before], colour);
        ENGINE_UNROLL
        for (int c = 0; c < channels; ++c) total[c] += colour[c];
    }
    ENGINE_UNROLL
    for (int c = 0; c < channels; ++c) {
        for (int bits = kWarpLanes / 2; bits > 0; bits /= 2) total[c] += __shfl_xor_sync(0xffffffff, total[c], bits);
        if (thread % kWarpLanes == 0) sums.of[thread / kWarpLanes][c] = total[c];
    }
    block_barrier();
    if (thread >= channels) return;
    Step& step = steps[number];
    double offset = step.constant[thread];
    for (int c = 0; c < channels; ++c) {
        double sum = 0;
        for (int warp = 0; warp < kMeanThreads / kWarpLanes; ++warp) sum += sums.of[warp][c];
        offset += step.of_mean[thread][c] * (sum / (double(t.height) * t.width));
    }
    step.offset[thread] = float(offset);
}

}  // namespace
}  // namespace cuda
}  // namespace engine
