// The Python face of local response normalisation on the CPU. Python passes addresses of memory that it keeps alive for
// the length of the call; engine.ops sees to it that they are good.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/lrn.h"

namespace py = pybind11;

namespace {

using Sizes = std::array<int64_t, 6>;

void check_threads(int threads) {
    if (threads < 1) throw std::invalid_argument("there must be at least 1 thread");
}

int64_t workspace(bool backward, int element_bytes, const Sizes& sizes, int threads) {
    engine::check_lrn_element(element_bytes);
    check_threads(threads);
    return engine::lrn_workspace(engine::lrn_call(sizes, {}, {}), backward, element_bytes, threads);
}

void run(const std::string& isa, int element_bytes, const Sizes& sizes, const std::array<double, 3>& constants,
         const std::array<std::uintptr_t, 4>& arrays, int threads) {
    const engine::LrnKernels* kernels = engine::lrn_kernels(isa.c_str());
    if (!kernels) throw std::invalid_argument("no instruction set is called " + isa);
    engine::check_lrn_element(element_bytes);
    check_threads(threads);
    const engine::LrnCall call = engine::lrn_call(sizes, constants, arrays);
    element_bytes == 4 ? kernels->run_float(call, threads) : kernels->run_double(call, threads);
}

}  // namespace

void bind_lrn(py::module_& module) {
    module.def("local_response_norm_workspace", &workspace, py::arg("backward"), py::arg("element_bytes"),
               py::arg("sizes"), py::arg("threads"));
    module.def("local_response_norm", &run, py::arg("isa"), py::arg("element_bytes"), py::arg("sizes"),
               py::arg("constants"), py::arg("arrays"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}
