// The Python face of what reads JPEG.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/jpeg.h"

namespace py = pybind11;

namespace {

py::tuple header(std::uintptr_t data, int64_t bytes) {
    engine::JpegHeader header{};
    const char* reason = engine::jpeg_header(reinterpret_cast<const uint8_t*>(data), bytes, &header);
    if (reason) throw std::invalid_argument(reason);  // ValueError
    return py::make_tuple(header.height, header.width, header.components, header.orientation);
}

// Gives the part's pixels as a bytearray, and (top, left, rows, columns).
py::tuple decode(std::uintptr_t data, int64_t bytes, int64_t channels, int64_t eighths,
                 const std::array<int64_t, 4>& window) {
    engine::JpegPart part{};
    char reason[200] = "";
    bool done;
    {
        py::gil_scoped_release released;
        done = engine::decode_jpeg(reinterpret_cast<const uint8_t*>(data), bytes, channels, eighths, window[0],
                                   window[1], window[2], window[3], &part, reason, sizeof reason);
    }
    py::object pixels;
    if (done)
        pixels = py::reinterpret_steal<py::object>(PyByteArray_FromStringAndSize(
            reinterpret_cast<const char*>(part.memory), static_cast<Py_ssize_t>(part.rows * part.row)));
    std::free(part.memory);
    if (!done) throw std::invalid_argument(reason);  // ValueError
    return py::make_tuple(pixels, py::make_tuple(part.top, part.left, part.rows, part.columns));
}

}  // namespace

void bind_jpeg(py::module_& module) {
    module.def("jpeg_decodes", &engine::jpeg_decodes);
    module.def("jpeg_header", &header, py::arg("data"), py::arg("bytes"));
    module.def("decode_jpeg", &decode, py::arg("data"), py::arg("bytes"), py::arg("channels"), py::arg("eighths"),
               py::arg("window"));
}
