// The Python face of networks of one bit on a GPU, on raw addresses and a stream: a part of engine._cuda, and with
// ENGINE_CUDA_ON_HOST a module of its own for the tests. engine.ops sees to it that sizes and addresses are good.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "binary.h"

namespace py = pybind11;

namespace {

using Sizes = std::array<int64_t, 16>;

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
#if defined(ENGINE_CUDA_ON_HOST)
    throw std::runtime_error(error == cudaErrorLaunchFailure ? engine::host::failure() : "no GPU takes such a launch");
#else
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
#endif
}

// sums, bits, thresholds, inverted
engine::BinaryOutput output_of(const std::array<std::uintptr_t, 4>& out) {
    return {at<int32_t>(out[0]), at<uint32_t>(out[1]), at<const int32_t>(out[2]), at<const uint32_t>(out[3])};
}

void convolve(const Sizes& sizes, bool bytes, std::uintptr_t activations, std::uintptr_t rows,
              std::uintptr_t minus_total, const std::array<std::uintptr_t, 4>& out, std::uintptr_t stream) {
    static_assert(sizeof(engine::BinaryConvolution) == sizeof(Sizes), "a size for each field, in their order");
    engine::BinaryConvolution shape;
    std::memcpy(&shape, sizes.data(), sizeof shape);
    if (const char* reason = engine::cuda::binary.refuses(shape, bytes)) throw std::invalid_argument(reason);
    const engine::CudaBinaryWeights weights{at<const void>(rows), at<const int32_t>(minus_total)};
    check(engine::cuda::binary.convolve(shape, bytes, at<const void>(activations), weights, output_of(out),
                                        reinterpret_cast<cudaStream_t>(stream)));
}

void threshold(std::uintptr_t sums, int64_t rows, int64_t filters, const std::array<std::uintptr_t, 4>& out,
               std::uintptr_t stream) {
    check(engine::cuda::binary.threshold(at<const int32_t>(sums), rows, filters, output_of(out),
                                         reinterpret_cast<cudaStream_t>(stream)));
}

void pack(std::uintptr_t values, int64_t rows, int64_t length, std::uintptr_t bits, std::uintptr_t stream) {
    check(engine::cuda::binary.pack(at<const float>(values), rows, length, at<uint32_t>(bits),
                                    reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace

void bind_cuda_binary(py::module_& module) {
    using Free = py::call_guard<py::gil_scoped_release>;
    module.def("binary_convolve", &convolve, py::arg("sizes"), py::arg("bytes"), py::arg("activations"),
               py::arg("rows"), py::arg("minus_total"), py::arg("out"), py::arg("stream"), Free());
    module.def("binary_threshold", &threshold, py::arg("sums"), py::arg("rows"), py::arg("filters"), py::arg("out"),
               py::arg("stream"), Free());
    module.def("binary_pack", &pack, py::arg("values"), py::arg("rows"), py::arg("length"), py::arg("bits"),
               py::arg("stream"), Free());
}

#if defined(ENGINE_CUDA_ON_HOST)
PYBIND11_MODULE(_binary_on_host, module) {
    module.doc() = "The CUDA kernels of networks of one bit, compiled for the host: for tests.";
    module.def("shuffle", [](uint64_t seed) { engine::host::seed = seed; }, "Sets the order of fibers; 0: by index");
    bind_cuda_binary(module);
}
#endif
