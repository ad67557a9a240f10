// The Python face of the pass over the pixels of a batch. Python passes addresses of memory that it keeps alive for the
// length of the call; engine.ops sees to it that they are good.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>

#include "cpu/pictures.h"

namespace py = pybind11;

namespace {

template <typename T>
const T* at(std::uintptr_t address) {
    return reinterpret_cast<const T*>(address);
}

// sizes: the first nine fields of ImagePass. arrays: the addresses of its axes, mirrored, kinds, factors and erased.
py::tuple transform_pictures(const std::string& isa, std::uintptr_t pictures, const std::array<int64_t, 9>& sizes,
                             const std::array<float, 3>& fill, const std::array<std::uintptr_t, 5>& arrays,
                             bool scaled, std::uintptr_t out) {
    engine::ImagePass pass{};
    pass.images = sizes[0];
    pass.channels = sizes[1];
    pass.height = sizes[2];
    pass.width = sizes[3];
    pass.output = sizes[4];
    pass.interleaved = sizes[5];
    pass.border = sizes[6];
    pass.changes = sizes[7];
    pass.boxes = sizes[8];
    for (std::size_t channel = 0; channel < 3; ++channel) pass.fill[channel] = fill[channel];
    pass.axes = at<engine::Axis>(arrays[0]);
    pass.mirrored = at<uint8_t>(arrays[1]);
    pass.kinds = at<int32_t>(arrays[2]);
    pass.factors = at<float>(arrays[3]);
    pass.erased = at<engine::Erased>(arrays[4]);
    engine::PictureTimes times;
    engine::PictureFault fault;
    {
        py::gil_scoped_release released;
        fault = engine::transform_pictures(isa.c_str(), at<engine::Picture>(pictures), pass, scaled,
                                           reinterpret_cast<void*>(out), &times);
    }
    // A reason may quote what a library said, in whatever encoding.
    py::object reason = py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(fault.reason, static_cast<Py_ssize_t>(std::char_traits<char>::length(fault.reason)),
                             "replace"));
    return py::make_tuple(fault.kind, fault.picture, fault.error, reason, times.read, times.decode, times.transform);
}

uint32_t crc32c(std::uintptr_t data, int64_t bytes) { return engine::crc32c(at<uint8_t>(data), bytes); }

}  // namespace

void bind_images(py::module_& module) {
    module.def("transform_pictures", &transform_pictures, py::arg("isa"), py::arg("pictures"), py::arg("sizes"),
               py::arg("fill"), py::arg("arrays"), py::arg("scaled"), py::arg("out"));
    module.def("crc32c", &crc32c, py::arg("data"), py::arg("bytes"), py::call_guard<py::gil_scoped_release>());
}
