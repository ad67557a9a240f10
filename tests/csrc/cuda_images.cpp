// Runs the GPU's pass over images, compiled for the host, on random plans and on arrays of exactly the size that the
// contract gives them, for sanitizers to watch (`make sanitize`). Each is run twice, in another order of threads and
// into memory of another content: the bits must be the same. Arguments: the number of passes, and a seed.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../csrc/cuda/images.h"
#include "cases.h"

namespace {

using namespace engine;

double uniform(Random& random, double least, double most) {
    return std::uniform_real_distribution<double>(least, most)(random);
}

double within(double number, double low, double high) { return std::fmin(std::fmax(number, low), high); }

// Memory of exactly so many elements.
template <typename T>
struct Array {
    Bytes bytes;
    T* elements;
    explicit Array(int64_t count)
        : bytes(count * int64_t(sizeof(T)), sizeof(double)), elements(static_cast<T*>(bytes.get())) {}
};

Axis draw_axis(Random& random, int64_t size, int64_t places, bool reflects) {
    const double pixels = double(size), out = double(places);
    Axis axis{0, 1, 0, pixels, 0, out};
    if (reflects) {
        axis.first = double(draw(random, 0, size - 1));
        axis.last = double(draw(random, int64_t(axis.first) + 1, size));
        axis.origin = double(draw(random, -70, 70));
    } else if (draw(random, 0, 1)) {
        axis.origin = double(draw(random, -places, size));
        axis.low = within(-axis.origin, 0, out);
        axis.high = within(pixels - axis.origin, axis.low, out);
    } else {
        const double extent = uniform(random, 0.1, pixels);
        axis.origin = uniform(random, 0, pixels - extent);
        axis.scale = extent / out;
        if (draw(random, 0, 1)) {
            axis.first = std::floor(axis.origin);
            axis.last = within(std::ceil(axis.origin + extent), axis.first + 1, pixels);
        }
        axis.low = double(draw(random, 0, places));
        axis.high = double(draw(random, int64_t(axis.low), places));
    }
    return axis;
}

// Runs a pass in an order of threads, into memory that is full of `content`; returns whether it could be launched.
bool run(const ImagePass& pass, const ImageBatch& batch, uint64_t seed, int content, const Bytes& out, int64_t bytes) {
    const int64_t packed_bytes = cuda_images.packed_bytes(pass);
    const Array<uint8_t> packed(packed_bytes), copied(packed_bytes);
    cuda_images.pack(pass, packed.elements);
    std::memcpy(copied.elements, packed.elements, size_t(packed_bytes));
    std::memset(out.get(), content, size_t(bytes));
    host::seed = seed;
    if (cuda_images.run(pass, batch, packed.elements, copied.elements, out.get(), nullptr) == cudaSuccess) return true;
    std::printf("a launch failed: %s\n", host::failure().c_str());
    return false;
}

bool check_pass(Random& random) {
    ImagePass pass{};
    pass.images = draw(random, 1, 3), pass.channels = 1 + 2 * draw(random, 0, 1);
    pass.height = draw(random, 1, 40), pass.width = draw(random, 1, 40);
    pass.output = draw(random, 0, 2), pass.interleaved = draw(random, 0, 1), pass.border = draw(random, 0, 1);
    pass.changes = pass.output == kBytes ? 0 : draw(random, 0, 5), pass.boxes = draw(random, 0, 2);
    const int64_t height = draw(random, 1, 60), width = draw(random, 1, 60), stored = draw(random, 1, 4);
    const Array<Axis> axes(2 * pass.images);
    const Array<uint8_t> mirrored(pass.images);
    const Array<int32_t> kinds(pass.images * pass.changes);
    const Array<float> factors(12 * pass.images * pass.changes);
    const Array<Erased> erased(pass.images * pass.boxes);
    const Array<int64_t> index(pass.images);
    for (int64_t image = 0; image < pass.images; ++image) {
        axes.elements[2 * image] = draw_axis(random, height, pass.height, pass.border == kReflected);
        axes.elements[2 * image + 1] = draw_axis(random, width, pass.width, pass.border == kReflected);
        mirrored.elements[image] = uint8_t(draw(random, 0, 1));
        index.elements[image] = draw(random, 0, stored - 1);
    }
    for (int64_t number = 0; number < pass.images * pass.changes; ++number)
        kinds.elements[number] = int32_t(draw(random, kNothing, kHue)) + (draw(random, 0, 1) ? kClipped : 0);
    for (int64_t number = 0; number < 12 * pass.images * pass.changes; ++number)
        factors.elements[number] = float(uniform(random, -0.5, 0.5));
    for (int64_t number = 0; number < pass.images * pass.boxes; ++number) {
        const auto side = [&] { return int32_t(draw(random, -5, 45)); };
        erased.elements[number] = {side(), side(), side(), side(), {1, 2, 3}};
    }
    pass.axes = axes.elements, pass.mirrored = mirrored.elements, pass.kinds = kinds.elements;
    pass.factors = factors.elements, pass.erased = erased.elements;
    if (const char* reason = cuda_images.mistake(pass, height, width)) {
        std::printf("refused: %s\n", reason);
        return false;
    }
    const Array<uint8_t> images(stored * pass.channels * height * width);
    for (int64_t at = 0; at < stored * pass.channels * height * width; ++at)
        images.elements[at] = uint8_t(draw(random, 0, 255));
    ImageBatch batch{images.elements, pass.channels * height * width, width, 1, height * width, nullptr};
    if (draw(random, 0, 1)) batch.row = width * pass.channels, batch.column = pass.channels, batch.channel = 1;
    if (stored < pass.images || draw(random, 0, 1)) batch.index = index.elements;
    const int64_t sizes[3] = {1, 4, 2};
    const int64_t bytes = pass.images * pass.channels * pass.height * pass.width * sizes[pass.output];
    const Bytes out(bytes, size_t(8)), again(bytes, size_t(8));
    if (!run(pass, batch, 0, 0x00, out, bytes) || !run(pass, batch, random() | 1, 0xff, again, bytes)) return false;
    return std::memcmp(out.get(), again.get(), size_t(bytes)) == 0;
}

}  // namespace

int main(int count, char** arguments) {
    const int passes = count > 1 ? std::atoi(arguments[1]) : 100;
    Random random(count > 2 ? uint64_t(std::atoll(arguments[2])) : 0);
    int failures = 0;
    for (int number = 0; number < passes; ++number) failures += !check_pass(random);
    std::printf("%d passes, %d failures\n", passes, failures);
    return failures != 0;
}
