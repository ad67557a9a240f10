// The Python face of the CUDA kernels; none of them knows torch. Python passes addresses of memory it owns and a stream,
// and keeps the memory until the stream is done with it (torch's allocator sees to that).
//
// Compiled as engine._cuda, and with ENGINE_CUDA_ON_HOST, beside the same kernels, as a module for the tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/convolution.h"
#include "cuda/images.h"

namespace py = pybind11;

// Of folders of csrc/cuda; tests have each as a module of its own.
void bind_cuda_binary(py::module_& module);
void bind_cuda_lrn(py::module_& module);
void bind_cuda_rounding(py::module_& module);

namespace {

void check(const char* reason) {
    if (reason) throw std::invalid_argument(reason);  // ValueError
}

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
#if defined(ENGINE_CUDA_ON_HOST)
    throw std::runtime_error(error == cudaErrorLaunchFailure ? engine::host::failure() : "no GPU takes such a launch");
#else
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
#endif
}

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

using Sizes = std::array<int64_t, 16>;

engine::ConvShape shape_of(const Sizes& sizes) {
    static_assert(sizeof(engine::ConvShape) == sizeof(Sizes), "a size for each field, in their order");
    engine::ConvShape shape;
    std::memcpy(&shape, sizes.data(), sizeof shape);
    return shape;
}

engine::Direction direction_of(int number) {
    if (number < 0 || number > 2) throw std::invalid_argument("a direction is 0, 1 or 2");
    return engine::Direction{number};
}

void check_size(int size) {
    if (size != 4 && size != 8) throw std::invalid_argument("an element has 4 or 8 bytes");
}

const engine::CudaAlgorithm& find(const std::string& name) {
    for (const auto* algorithm = engine::cuda_algorithms(); *algorithm; ++algorithm)
        if (name == (*algorithm)->name) return **algorithm;
    throw std::invalid_argument("no algorithm is called " + name);
}

// One algorithm. Whatever passes these checks computes, if the addresses are good: that is for engine.ops to see to.
class Convolution {
public:
    explicit Convolution(const std::string& name) : algorithm_(find(name)) {}

    py::object refuses(const Sizes& sizes, int direction) const {
        const engine::ConvShape shape = shape_of(sizes);
        const char* reason = engine::mistake(shape);
        if (!reason) reason = algorithm_.refuses(shape, direction_of(direction));
        return reason ? py::object(py::str(reason)) : py::none();
    }

    int64_t workspace(const Sizes& sizes, int direction, int size, bool prepared) const {
        const engine::ConvShape shape = taken(sizes, direction);
        check_size(size);
        return algorithm_.workspace(shape, engine::Direction{direction}, size, prepared);
    }

    int64_t prepared_bytes(const Sizes& sizes, int size) const {
        const engine::ConvShape shape = taken(sizes, 0);
        check_size(size);
        return algorithm_.prepared_bytes ? algorithm_.prepared_bytes(shape, size) : 0;
    }

    double waste(const Sizes& sizes) const {
        const engine::ConvShape shape = shape_of(sizes);
        check(engine::mistake(shape));
        const char* reason = nullptr;
        for (int direction : {2, 1, 0}) {
            reason = algorithm_.refuses(shape, engine::Direction{direction});
            if (!reason) return algorithm_.waste ? algorithm_.waste(shape) : 0.0;
        }
        throw std::invalid_argument(reason);
    }

    void prepare(const Sizes& sizes, int size, std::uintptr_t weight, std::uintptr_t prepared,
                 std::uintptr_t stream) const {
        const engine::ConvShape shape = taken(sizes, 0);
        check_size(size);
        const auto run = size == 4 ? algorithm_.prepare_float : algorithm_.prepare_double;
        if (!run) throw std::invalid_argument("the algorithm has no prepared form of a weight");
        check(run(shape, at<const void>(weight), at<void>(prepared), reinterpret_cast<cudaStream_t>(stream)));
    }

    void run(const Sizes& sizes, int direction, int size, std::uintptr_t left, std::uintptr_t right,
             std::uintptr_t bias, std::uintptr_t prepared, std::uintptr_t out, std::uintptr_t workspace,
             std::uintptr_t stream) const {
        const engine::ConvShape shape = taken(sizes, direction);
        check_size(size);
        const auto function = size == 4 ? algorithm_.run_float : algorithm_.run_double;
        check(function({shape, engine::Direction{direction}, at<const void>(left), at<const void>(right),
                        at<const void>(bias), at<const void>(prepared), at<void>(out), at<void>(workspace),
                        reinterpret_cast<cudaStream_t>(stream)}));
    }

private:
    engine::ConvShape taken(const Sizes& sizes, int direction) const {
        const engine::ConvShape shape = shape_of(sizes);
        check(engine::mistake(shape));
        check(algorithm_.refuses(shape, direction_of(direction)));
        return shape;
    }

    const engine::CudaAlgorithm& algorithm_;
};

// A pass over images of one size, whose arrays Python keeps for as long as this is there.
class ImagePass {
public:
    // sizes: the first nine fields of engine::ImagePass, then height and width of the images. arrays: the addresses of
    // its axes, mirrored, kinds, factors and erased, on the host.
    ImagePass(const std::array<int64_t, 11>& sizes, const std::array<float, 3>& fill,
              const std::array<std::uintptr_t, 5>& arrays)
        : pass_{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8],
                {fill[0], fill[1], fill[2]},
                at<const engine::Axis>(arrays[0]), at<const uint8_t>(arrays[1]), at<const int32_t>(arrays[2]),
                at<const float>(arrays[3]), at<const engine::Erased>(arrays[4])} {
        check(engine::cuda_images.mistake(pass_, sizes[9], sizes[10]));
    }

    int64_t packed_bytes() const { return engine::cuda_images.packed_bytes(pass_); }
    void pack(std::uintptr_t packed) const { engine::cuda_images.pack(pass_, at<void>(packed)); }

    // strides: of the images' image, row, column and channel. index: an address, or 0.
    void run(std::uintptr_t images, const std::array<int64_t, 4>& strides, std::uintptr_t index, std::uintptr_t packed,
             std::uintptr_t copied, std::uintptr_t out, std::uintptr_t stream) const {
        const engine::ImageBatch batch{at<const uint8_t>(images), strides[0], strides[1], strides[2], strides[3],
                                       at<const int64_t>(index)};
        check(engine::cuda_images.run(pass_, batch, at<const void>(packed), at<void>(copied), at<void>(out),
                                      reinterpret_cast<cudaStream_t>(stream)));
    }

private:
    engine::ImagePass pass_;
};

}  // namespace

#if defined(ENGINE_CUDA_ON_HOST)
PYBIND11_MODULE(_cuda_on_host, module) {
    module.doc() = "The CUDA kernels of the engine, compiled for the host: for tests.";
    module.def("shuffle", [](uint64_t seed) { engine::host::seed = seed; }, "Sets the order of fibers; 0: by index");
#else
PYBIND11_MODULE(_cuda, module) {
    module.doc() = "CUDA kernels of the engine, on raw addresses; engine.ops is their checked face.";
    bind_cuda_binary(module);
    bind_cuda_lrn(module);
    bind_cuda_rounding(module);
#endif
    py::class_<Convolution>(module, "Convolution")
        .def(py::init<const std::string&>(), py::arg("algorithm"))
        .def("refuses", &Convolution::refuses)
        .def("workspace", &Convolution::workspace)
        .def("prepared_bytes", &Convolution::prepared_bytes)
        .def("waste", &Convolution::waste)
        .def("prepare", &Convolution::prepare, py::call_guard<py::gil_scoped_release>())
        .def("run", &Convolution::run, py::call_guard<py::gil_scoped_release>());
    py::class_<ImagePass>(module, "ImagePass")
        .def(py::init<const std::array<int64_t, 11>&, const std::array<float, 3>&,
                      const std::array<std::uintptr_t, 5>&>(),
             py::arg("sizes"), py::arg("fill"), py::arg("arrays"))
        .def("packed_bytes", &ImagePass::packed_bytes)
        .def("pack", &ImagePass::pack, py::call_guard<py::gil_scoped_release>())
        .def("run", &ImagePass::run, py::call_guard<py::gil_scoped_release>());
}
