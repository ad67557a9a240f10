// JPEG: what a file says of itself, and the pixels of a part of it.
#pragma once

#include <cstdint>

namespace engine {

struct JpegHeader {
    int64_t height, width;
    int64_t components;   // 1: gray, 3: colour, 4: CMYK and the like
    int64_t orientation;  // EXIF's, else XMP's, 1 to 8; 1 where it is not said
};

// Reads the header; needs no library. Returns null, or why it is none that can be read.
const char* jpeg_header(const uint8_t* data, int64_t bytes, JpegHeader* header) noexcept;

// Whether this build decodes: libjpeg-turbo's headers were there.
bool jpeg_decodes() noexcept;

// A part of a decoded image. The image was decoded at `eighths` / 8 of its size, to height x width pixels; `memory`
// holds its rows from `top` on and columns from `left` on, interleaved, `row` bytes from one row to the next.
struct JpegPart {
    int64_t eighths;  // 1, 2, 4 or 8
    int64_t height, width;
    int64_t top, left, rows, columns;
    int64_t row;
    uint8_t* memory;
    int64_t capacity;  // bytes that memory has room for; grown as needed with realloc; whoever gave it frees it
};

// Decodes what rows [first_row, last_row) and columns [first_column, last_column) of the full-sized image need, of
// `channels` 1 or 3, at `eighths` / 8 of its size. What is decoded beside those columns may be inexact. One channel of
// a file in colour is 0.299 R + 0.587 G + 0.114 B. False: `reason` (of `room` characters) says why; so it does where
// libjpeg would only warn, and make pixels up. Safe to call from any thread.
bool decode_jpeg(const uint8_t* data, int64_t bytes, int64_t channels, int64_t eighths, int64_t first_row,
                 int64_t last_row, int64_t first_column, int64_t last_column, JpegPart* part, char* reason,
                 int64_t room) noexcept;

}  // namespace engine
