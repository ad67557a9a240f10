// Images as they are stored: in memory or in files, pixels or JPEG.
#pragma once

#include <cstdint>

#include "../images.h"

namespace engine {

enum Encoding : int64_t { kInterleaved = 0, kPlanar = 1, kJpeg = 2 };  // HWC, CHW

struct Picture {
    int64_t address;        // of its bytes in memory; 0: they are in a file
    int64_t file, offset;   // an open descriptor, and where in it
    int64_t bytes;          // how many
    int64_t checksum;       // their CRC-32C; -1: they are not checked
    int64_t encoding;       // Encoding
    int64_t height, width;  // of the image
};

// What went wrong with a picture. A reason is a phrase, as in "cannot be decoded: ...".
struct PictureFault {
    enum Kind : int64_t { kNone = 0, kEnded = 1, kUnreadable = 2, kChecksum = 3, kDamaged = 4, kRefused = 5 };
    int64_t kind = kNone, picture = 0;
    int64_t error = 0;  // of kUnreadable: the system's errno
    char reason[200];   // of kDamaged and kRefused

    PictureFault() { reason[0] = '\0'; }  // to set all of it for every image would take a while
};

// Nanoseconds that a pass spent.
struct PictureTimes {
    int64_t read, decode, transform;
};

// Reads, checks, decodes and transforms pictures into `out`: dense [images][channels][height][width], or NHWC. With
// `scaled`, a JPEG may be decoded at a half, a quarter or an eighth of its size where the window is reduced by as much
// anyway. `isa`: an instruction set's name. Uses no thread but the caller's. Stops at the first fault.
PictureFault transform_pictures(const char* isa, const Picture* pictures, const ImagePass& pass, bool scaled, void* out,
                                PictureTimes* times) noexcept;

// CRC-32C (Castagnoli), as RFC 3720 has it.
uint32_t crc32c(const uint8_t* data, int64_t bytes) noexcept;

}  // namespace engine
