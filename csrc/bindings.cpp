// The Python face of the CPU kernels: the only file here that knows Python, and none knows torch.
// Python passes addresses of memory it owns, and keeps it alive for the length of the call.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "cpu/philox.h"

namespace py = pybind11;

namespace {

// The one way a kernel's complaint reaches Python: kernels return null or a reason, and never throw.
void check(const char* reason) {
    if (reason) throw std::invalid_argument(reason);  // ValueError
}

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void philox(uint64_t key, std::uintptr_t samples, int64_t n, int64_t blocks, std::uintptr_t out) {
    check(engine::philox(key, at<const int64_t>(samples), n, blocks, at<int64_t>(out)));
}

// The vector instructions the compiler was allowed to use, from its own predefined macros.
const char* instruction_set() {
#if defined(__AVX512F__)
    return "AVX-512";
#elif defined(__AVX2__)
    return "AVX2";
#elif defined(__SSE2__)
    return "SSE2";
#elif defined(__ARM_NEON)
    return "NEON";
#else
    return "scalar";
#endif
}

py::dict build_facts() {
    py::dict facts;
    facts["version"] = ENGINE_VERSION;
#if defined(__clang__)
    facts["compiler"] = "Clang " __clang_version__;
#else
    facts["compiler"] = "GCC " __VERSION__;
#endif
    facts["flags"] = ENGINE_FLAGS;
    facts["instruction_set"] = instruction_set();
    return facts;
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "CPU kernels of the engine, on raw addresses; engine.ops is their checked face.";
    module.def("build_facts", &build_facts);
    module.def("philox", &philox, py::arg("key"), py::arg("samples"), py::arg("n"), py::arg("blocks"),
               py::arg("out"), py::call_guard<py::gil_scoped_release>());
}
