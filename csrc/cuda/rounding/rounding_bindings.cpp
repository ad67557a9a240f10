// The Python face of rounding on a GPU, on raw addresses and a stream: a part of engine._cuda, and with
// ENGINE_CUDA_ON_HOST a module of its own for the tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../../rounding_call.h"
#include "rounding.h"

namespace py = pybind11;

namespace {

void round_elements(int kind, const std::array<int64_t, 8>& sizes, uint64_t key,
                    const std::array<std::uintptr_t, 6>& arrays, std::uintptr_t stream) {
    const engine::CudaRoundingKernels& kernels = engine::cuda::rounding;
    using Kernel = cudaError_t (*)(const engine::RoundingCall&, cudaStream_t);
    const Kernel all[] = {kernels.fixed_float, kernels.fixed_double, kernels.bfloat16,
                          kernels.float16,     kernels.add_bfloat16, kernels.add_compensated};
    const engine::RoundingCall call = engine::rounding_call(sizes, key, arrays);
    const cudaError_t error = all[engine::rounding_kind(kind)](call, reinterpret_cast<cudaStream_t>(stream));
    if (error == cudaSuccess) return;
#if defined(ENGINE_CUDA_ON_HOST)
    throw std::runtime_error(error == cudaErrorLaunchFailure ? engine::host::failure() : "no GPU takes such a launch");
#else
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
#endif
}

}  // namespace

void bind_cuda_rounding(py::module_& module) {
    module.def("round_elements", &round_elements, py::arg("kind"), py::arg("sizes"), py::arg("key"), py::arg("arrays"),
               py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

#if defined(ENGINE_CUDA_ON_HOST)
PYBIND11_MODULE(_rounding_on_host, module) {
    module.doc() = "The CUDA kernels of rounding, compiled for the host: for tests.";
    module.def("shuffle", [](uint64_t seed) { engine::host::seed = seed; }, "Sets the order of fibers; 0: by index");
    bind_cuda_rounding(module);
}
#endif
