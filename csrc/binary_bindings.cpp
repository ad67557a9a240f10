// The Python face of the binary networks' kernels on the CPU. Python passes addresses of memory that it keeps alive for
// the length of the call; engine.ops.binary sees to it that they are good.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/binary.h"

namespace py = pybind11;

namespace {

using Sizes = std::array<int64_t, 16>;

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

const engine::BinaryKernels& kernels_of(const std::string& name, int threads) {
    if (threads < 1) throw std::invalid_argument("there must be at least 1 thread");
    for (auto* kernels = engine::binary_kernels(); *kernels; ++kernels)
        if (name == (*kernels)->name) return **kernels;
    throw std::invalid_argument("no instruction set is called " + name);
}

engine::BinaryConvolution shape_of(const Sizes& sizes, bool bytes) {
    static_assert(sizeof(engine::BinaryConvolution) == sizeof(Sizes), "a size for each field, in their order");
    engine::BinaryConvolution shape;
    std::memcpy(&shape, sizes.data(), sizeof shape);
    if (const char* reason = engine::mistake(shape, bytes)) throw std::invalid_argument(reason);
    return shape;
}

// sums, bits, thresholds, inverted
engine::BinaryOutput output_of(const std::array<std::uintptr_t, 4>& out) {
    return {at<int32_t>(out[0]), at<uint32_t>(out[1]), at<const int32_t>(out[2]), at<const uint32_t>(out[3])};
}

py::list instruction_sets() {
    py::list sets;
    for (auto* kernels = engine::binary_kernels(); *kernels; ++kernels)
        sets.append(py::make_tuple((*kernels)->name, (*kernels)->supported()));
    return sets;
}

int64_t workspace(const Sizes& sizes, bool bytes, int threads) {
    return engine::workspace_bytes(shape_of(sizes, bytes), bytes, threads);
}

void convolve(const std::string& isa, const Sizes& sizes, bool bytes, std::uintptr_t activations, std::uintptr_t panels,
              const std::array<std::uintptr_t, 4>& out, std::uintptr_t workspace, int threads) {
    const engine::BinaryConvolution shape = shape_of(sizes, bytes);
    kernels_of(isa, threads).convolve(shape, bytes, at<const void>(activations), at<const uint32_t>(panels),
                                      output_of(out), at<void>(workspace), threads);
}

void threshold(const std::string& isa, std::uintptr_t sums, int64_t rows, int64_t filters,
               const std::array<std::uintptr_t, 4>& out, int threads) {
    kernels_of(isa, threads).threshold(at<const int32_t>(sums), rows, filters, output_of(out), threads);
}

void pack(const std::string& isa, std::uintptr_t values, int64_t rows, int64_t length, std::uintptr_t bits,
          int threads) {
    kernels_of(isa, threads).pack(at<const float>(values), rows, length, at<uint32_t>(bits), threads);
}

}  // namespace

void bind_binary(py::module_& module) {
    using Free = py::call_guard<py::gil_scoped_release>;
    module.def("binary_instruction_sets", &instruction_sets, "(name, whether this machine has it), the best first");
    module.def("binary_workspace", &workspace, py::arg("sizes"), py::arg("bytes"), py::arg("threads"));
    module.def("binary_convolve", &convolve, py::arg("isa"), py::arg("sizes"), py::arg("bytes"), py::arg("activations"),
               py::arg("panels"), py::arg("out"), py::arg("workspace"), py::arg("threads"), Free());
    module.def("binary_threshold", &threshold, py::arg("isa"), py::arg("sums"), py::arg("rows"), py::arg("filters"),
               py::arg("out"), py::arg("threads"), Free());
    module.def("binary_pack", &pack, py::arg("isa"), py::arg("values"), py::arg("rows"), py::arg("length"),
               py::arg("bits"), py::arg("threads"), Free());
}
