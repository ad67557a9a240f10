// The Python face of rounding on the CPU. Python passes addresses of memory that it keeps alive for the length of the
// call; engine.ops sees to it that they are good.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/rounding.h"
#include "rounding_call.h"

namespace py = pybind11;

namespace {

void round_elements(const std::string& isa, int kind, const std::array<int64_t, 8>& sizes, uint64_t key,
                    const std::array<std::uintptr_t, 6>& arrays, int threads) {
    const engine::RoundingKernels* kernels = engine::rounding_kernels(isa.c_str());
    if (!kernels) throw std::invalid_argument("no instruction set is called " + isa);
    if (threads < 1) throw std::invalid_argument("there must be at least 1 thread");
    const engine::RoundingCall call = engine::rounding_call(sizes, key, arrays);
    using Kernel = void (*)(const engine::RoundingCall&, int);
    const Kernel all[] = {kernels->fixed_float, kernels->fixed_double, kernels->bfloat16,
                          kernels->float16,     kernels->add_bfloat16, kernels->add_compensated};
    all[engine::rounding_kind(kind)](call, threads);
}

}  // namespace

void bind_rounding(py::module_& module) {
    module.def("round_elements", &round_elements, py::arg("isa"), py::arg("kind"), py::arg("sizes"), py::arg("key"),
               py::arg("arrays"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}
