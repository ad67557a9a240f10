// The pass over the pixels of a batch, from bytes in the GPU's memory to what a network takes there.
//
// Each thread makes one pixel of the output: the filter of both axes is evaluated where it is needed, and all changes
// of colour happen in registers, so that numbers are written once and never read again. That is one launch for crops,
// mirroring, borders, normalisation, and changes of colour without a contrast. A contrast needs the mean of its image:
// a launch before then goes over the images and computes it, another one for each contrast after a step that clips.
// What changes of colour come to is folded on the host (image_steps.h).
#include <cstring>

#include "image_kernels.h"
#include "image_mistakes.h"

namespace engine {
namespace cuda {
namespace {

// Where each array begins in what is packed; the axes come first.
struct Packing {
    int64_t most_steps, steps, counts, erased, mirrored, bytes;

    explicit Packing(const ImagePass& pass) : most_steps(cuda::most_steps(pass)) {
        steps = pass.images * 2 * int64_t(sizeof(Axis));
        counts = steps + pass.images * most_steps * int64_t(sizeof(Step));
        erased = counts + pass.images * int64_t(sizeof(int32_t));
        mirrored = erased + pass.images * pass.boxes * int64_t(sizeof(Erased));
        bytes = mirrored + pass.images;
    }
};

template <typename T>
T* at(void* packed, int64_t bytes) {
    return reinterpret_cast<T*>(static_cast<char*>(packed) + bytes);
}

int64_t packed_bytes(const ImagePass& pass) { return Packing(pass).bytes; }

void pack(const ImagePass& pass, void* packed) {
    const Packing packing(pass);
    const auto copy = [&](int64_t to, const void* from, int64_t bytes) {
        if (bytes > 0) std::memcpy(at<char>(packed, to), from, size_t(bytes));
    };
    copy(0, pass.axes, packing.steps);
    copy(packing.erased, pass.erased, packing.mirrored - packing.erased);
    copy(packing.mirrored, pass.mirrored, pass.images);
    Step* steps = at<Step>(packed, packing.steps);
    for (int64_t image = 0; image < pass.images; ++image, steps += packing.most_steps) {
        int32_t& count = at<int32_t>(packed, packing.counts)[image];
        count = pass.output == kBytes ? 0 : fold(pass, image, steps);
        for (int64_t unused = count; unused < packing.most_steps; ++unused) steps[unused] = Step{};
    }
}

bool any_needs_mean(const ImagePass& pass, const Packing& packing, const void* packed, int64_t number) {
    const Step* steps = at<const Step>(const_cast<void*>(packed), packing.steps);
    for (int64_t image = 0; image < pass.images; ++image)
        if (steps[image * packing.most_steps + number].kind & kNeedsMean) return true;
    return false;
}

Transform transform_of(const ImagePass& pass, const ImageBatch& batch, const Packing& packing, void* copied,
                       void* out) {
    Transform t{};
    t.from = batch;
    t.axes = at<const Axis>(copied, 0);
    t.steps = at<Step>(copied, packing.steps);
    t.counts = at<const int32_t>(copied, packing.counts);
    t.erased = at<const Erased>(copied, packing.erased);
    t.mirrored = at<const uint8_t>(copied, packing.mirrored);
    t.out = out;
    t.image = pass.channels * pass.height * pass.width;
    t.column = pass.interleaved ? pass.channels : 1;
    t.row = pass.width * t.column;
    t.channel = pass.interleaved ? 1 : pass.height * pass.width;
    for (int c = 0; c < 3; ++c) t.fill[c] = pass.fill[c];
    t.height = int(pass.height), t.width = int(pass.width);
    t.most_steps = int(packing.most_steps), t.boxes = int(pass.boxes);
    t.tiles_across = (t.width + kTileWidth - 1) / kTileWidth;
    t.tiles = t.tiles_across * ((t.height + kTileHeight - 1) / kTileHeight);
    t.by_width = Divider(t.width);
    t.reflects = pass.border == kReflected;
    return t;
}

template <int channels>
cudaError_t launch_all(const ImagePass& pass, const Transform& t, const Packing& packing, const void* packed,
                       cudaStream_t stream) {
    const int64_t blocks = pass.images * t.tiles;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    for (int number = 0; number < t.most_steps; ++number) {
        if (!any_needs_mean(pass, packing, packed, number)) continue;
        const cudaError_t error = launch(complete_step<channels>, dim3(unsigned(pass.images)), dim3(kMeanThreads),
                                         sizeof(WarpSums), stream, t, number);
        if (error != cudaSuccess) return error;
    }
    const dim3 grid{unsigned(blocks)}, block(kTileWidth, kTileHeight);
    if (pass.output == kBytes) return launch(write_images<channels, uint8_t>, grid, block, 0, stream, t);
    if (pass.output == kFloat32) return launch(write_images<channels, float>, grid, block, 0, stream, t);
    return launch(write_images<channels, BFloat16>, grid, block, 0, stream, t);
}

cudaError_t run(const ImagePass& pass, const ImageBatch& batch, const void* packed, void* copied, void* out,
                cudaStream_t stream) {
    const Packing packing(pass);
    const Transform t = transform_of(pass, batch, packing, copied, out);
    return pass.channels == 3 ? launch_all<3>(pass, t, packing, packed, stream)
                              : launch_all<1>(pass, t, packing, packed, stream);
}

}  // namespace
}  // namespace cuda

const CudaImages cuda_images = {cuda::mistake, cuda::packed_bytes, cuda::pack, cuda::run};

}  // namespace engine
