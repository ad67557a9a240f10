// The Python face of the CPU kernels: it, image_bindings.cpp and jpeg_bindings.cpp alone know Python, and none torch.
// Python passes addresses of memory it owns, and keeps it alive for the length of the call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/philox.h"

namespace py = pybind11;

void bind_images(py::module_& module);
void bind_jpeg(py::module_& module);
void bind_rounding(py::module_& module);
void bind_binary(py::module_& module);
void bind_lrn(py::module_& module);

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

void uniform(uint64_t key, std::uintptr_t samples, int64_t n, int64_t draws, std::uintptr_t out) {
    constexpr int64_t few = 1 << 14;  // so few that nobody else would have begun meanwhile
    std::optional<py::gil_scoped_release> released;
    if (n > few || draws > few || n * draws > few) released.emplace();
    const char* reason = engine::uniform(key, at<const int64_t>(samples), n, draws, at<float>(out));
    released.reset();
    check(reason);
}

// Convolution. Whatever passes these checks computes, if the addresses are good: that is for engine.ops to see to.

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

// Null if a call can be made for elements of so many bytes with so many threads.
const char* unusable(int size, int threads) {
    if (size != 4 && size != 8) return "an element has 4 or 8 bytes";
    return threads < 1 ? "there must be at least 1 thread" : nullptr;
}

const engine::InstructionSet& find_set(const std::string& name) {
    for (const auto* set = engine::instruction_sets(); set->name; ++set)
        if (name == set->name) return *set;
    throw std::invalid_argument("no instruction set is called " + name);
}

const engine::Algorithm& find_algorithm(const std::string& set, const std::string& name) {
    for (const auto* algorithm = find_set(set).algorithms; *algorithm; ++algorithm)
        if (name == (*algorithm)->name) return **algorithm;
    throw std::invalid_argument("no algorithm is called " + name);
}

py::list instruction_sets() {
    py::list sets;
    for (const auto* set = engine::instruction_sets(); set->name; ++set)
        sets.append(py::make_tuple(set->name, set->supported()));
    return sets;
}

// One algorithm, compiled for one instruction set.
class Convolution {
public:
    Convolution(const std::string& set, const std::string& name) : algorithm_(find_algorithm(set, name)) {}

    py::object refuses(const Sizes& sizes, int direction) const {
        const engine::ConvShape shape = shape_of(sizes);
        const char* reason = engine::mistake(shape);
        if (!reason) reason = algorithm_.refuses(shape, direction_of(direction));
        return reason ? py::object(py::str(reason)) : py::none();
    }

    int64_t workspace(const Sizes& sizes, int direction, int size, int threads, bool prepared) const {
        const engine::ConvShape shape = taken(sizes, direction);
        check(unusable(size, threads));
        return algorithm_.workspace(shape, engine::Direction{direction}, size, threads, prepared);
    }

    int64_t prepared_bytes(const Sizes& sizes, int size) const {
        const engine::ConvShape shape = taken(sizes, 0);
        check(unusable(size, 1));
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

    void prepare(const Sizes& sizes, int size, std::uintptr_t weight, std::uintptr_t prepared, int threads) const {
        const engine::ConvShape shape = taken(sizes, 0);
        check(unusable(size, threads));
        const auto run = size == 4 ? algorithm_.prepare_float : algorithm_.prepare_double;
        if (!run) throw std::invalid_argument("the algorithm has no prepared form of a weight");
        run(shape, at<const void>(weight), at<void>(prepared), threads);
    }

    void run(const Sizes& sizes, int direction, int size, std::uintptr_t left, std::uintptr_t right,
             std::uintptr_t bias, std::uintptr_t prepared, std::uintptr_t out, std::uintptr_t workspace,
             int threads) const {
        const engine::ConvShape shape = taken(sizes, direction);
        check(unusable(size, threads));
        const auto function = size == 4 ? algorithm_.run_float : algorithm_.run_double;
        function({shape, engine::Direction{direction}, at<const void>(left), at<const void>(right),
                  at<const void>(bias), at<const void>(prepared), at<void>(out), at<void>(workspace), threads});
    }

private:
    // The shape, which the algorithm takes in this direction: given what it refuses, it would divide by zero, or read
    // and write anywhere.
    engine::ConvShape taken(const Sizes& sizes, int direction) const {
        const engine::ConvShape shape = shape_of(sizes);
        check(engine::mistake(shape));
        check(algorithm_.refuses(shape, direction_of(direction)));
        return shape;
    }

    const engine::Algorithm& algorithm_;
};

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
    module.def("uniform", &uniform, py::arg("key"), py::arg("samples"), py::arg("n"), py::arg("draws"), py::arg("out"));
    module.def("instruction_sets", &instruction_sets, "(name, whether this machine has it), the best first");
    py::class_<Convolution>(module, "Convolution")
        .def(py::init<const std::string&, const std::string&>(), py::arg("instruction_set"), py::arg("algorithm"))
        .def("refuses", &Convolution::refuses)
        .def("workspace", &Convolution::workspace)
        .def("prepared_bytes", &Convolution::prepared_bytes)
        .def("waste", &Convolution::waste)
        .def("prepare", &Convolution::prepare, py::call_guard<py::gil_scoped_release>())
        .def("run", &Convolution::run, py::call_guard<py::gil_scoped_release>());
    bind_images(module);
    bind_jpeg(module);
    bind_rounding(module);
    bind_binary(module);
    bind_lrn(module);
}
