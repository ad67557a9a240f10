// The Python face of local response normalisation on a GPU, on raw addresses and a stream: a part of engine._cuda, and
// with ENGINE_CUDA_ON_HOST a module of its own for the tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "lrn.h"

namespace py = pybind11;

namespace {

void run(int element_bytes, const std::array<int64_t, 6>& sizes, const std::array<double, 3>& constants,
         const std::array<std::uintptr_t, 4>& arrays, std::uintptr_t stream) {
    engine::check_lrn_element(element_bytes);
    const engine::CudaLrnKernels& kernels = engine::cuda::lrn;
    const auto kernel = element_bytes == 4 ? kernels.run_float : kernels.run_double;
    const cudaError_t error =
        kernel(engine::lrn_call(sizes, constants, arrays), reinterpret_cast<cudaStream_t>(stream));
    if (error == cudaSuccess) return;
#if defined(ENGINE_CUDA_ON_HOST)
    throw std::runtime_error(error == cudaErrorLaunchFailure ? engine::host::failure() : "no GPU takes such a launch");
#else
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
#endif
}

}  // namespace

void bind_cuda_lrn(py::module_& module) {
    module.def("local_response_norm", &run, py::arg("element_bytes"), py::arg("sizes"), py::arg("constants"),
               py::arg("arrays"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

#if defined(ENGINE_CUDA_ON_HOST)
PYBIND11_MODULE(_lrn_on_host, module) {
    module.doc() = "The CUDA kernels of local response normalisation, compiled for the host: for tests.";
    module.def("shuffle", [](uint64_t seed) { engine::host::seed = seed; }, "Sets the order of fibers; 0: by index");
    bind_cuda_lrn(module);
}
#endif
