#include <cstring>

#include "jpeg.h"

namespace engine {
namespace {

constexpr int kEndOfImage = 0xD9, kStartOfScan = 0xDA, kApp1 = 0xE1;
constexpr int kBaseline = 0xC0, kProgressive = 0xC2, kHuffmanTables = 0xC4, kReserved = 0xC8, kArithmetic = 0xCC;
constexpr int kOrientationTag = 0x112, kShort = 3, kLong = 4;

// Bytes of which none beyond the end is ever read: those are zero.
struct Bytes {
    const uint8_t* data;
    int64_t count;

    int byte(int64_t at) const { return at >= 0 && at < count ? data[at] : 0; }
    int64_t word(int64_t at, bool little) const {
        return little ? byte(at) | byte(at + 1) << 8 : byte(at) << 8 | byte(at + 1);
    }
    int64_t long_word(int64_t at, bool little) const {
        const int64_t first = word(at, little), second = word(at + 2, little);
        return little ? first | second << 16 : first << 16 | second;
    }
    bool has(int64_t at, const char* text, int64_t length) const {
        return at + length <= count && std::memcmp(data + at, text, static_cast<size_t>(length)) == 0;
    }
    bool begins_with(const char* text, int64_t length) const { return has(0, text, length); }
    Bytes after(int64_t skipped) const { return {data + skipped, count - skipped}; }
};

// The orientation that EXIF's first directory tells (TIFF 6.0; JEITA CP-3451, 4.6): what is none of the eight is 1, and
// 0 says that there is nothing about it.
int64_t exif_orientation(const Bytes& exif) {
    const bool little = exif.byte(0) == 'I';
    if (!exif.begins_with(little ? "II" : "MM", 2)) return 0;
    const int64_t directory = exif.long_word(4, little), entries = exif.word(directory, little);
    for (int64_t entry = 0; entry < entries; ++entry) {
        const int64_t at = directory + 2 + 12 * entry;
        if (at + 12 > exif.count) break;
        if (exif.word(at, little) != kOrientationTag) continue;
        const int64_t type = exif.word(at + 2, little);
        const int64_t value = type == kShort  ? exif.word(at + 8, little)
                              : type == kLong ? exif.long_word(at + 8, little)
                                              : 0;
        return value >= 1 && value <= 8 ? value : 1;
    }
    return 0;
}

// What XMP tells, as an attribute or as an element ("XMP Specification Part 2", 2.2: tiff:Orientation); else 0.
int64_t xmp_orientation(const Bytes& xmp) {
    constexpr char kName[] = "tiff:Orientation";
    constexpr int64_t kLength = sizeof kName - 1;
    for (int64_t at = 0; at + kLength < xmp.count; ++at) {
        if (!xmp.has(at, kName, kLength)) continue;
        const int64_t begin = at + kLength, value = begin + (xmp.has(begin, "=\"", 2) ? 2 : 1);
        const int digit = xmp.byte(value) - '0';
        if ((value == begin + 2 || xmp.byte(begin) == '>') && digit >= 0 && digit <= 9)
            return digit >= 1 && digit <= 8 ? digit : 1;
    }
    return 0;
}

bool is_frame(int marker) {
    return marker >= kBaseline && marker <= 0xCF && marker != kHuffmanTables && marker != kReserved &&
           marker != kArithmetic;
}

const char* read_frame(int marker, const Bytes& segment, JpegHeader* header) {
    if (marker > kProgressive) return "it is lossless, hierarchical or arithmetically coded";
    if (segment.count < 6) return "its frame header is too short";
    if (segment.byte(0) != 8) return "its samples have not 8 bits";
    header->height = segment.word(1, false);
    header->width = segment.word(3, false);
    header->components = segment.byte(5);
    if (header->height == 0 || header->width == 0) return "its size is not in its header";
    return nullptr;
}

// Reads the segments that come before the first scan.
class Segments {
public:
    Segments(const Bytes& file, JpegHeader* header) : file_(file), header_(header) {}

    const char* read() {
        const char* wrong = read_all();
        if (!has_frame_) return wrong ? wrong : "it has no frame header";
        const int64_t told = exif_ ? exif_ : xmp_;
        header_->orientation = told ? told : 1;
        return wrong;
    }

private:
    const Bytes& file_;
    JpegHeader* header_;
    bool has_frame_ = false, has_exif_ = false;
    int64_t exif_ = 0, xmp_ = 0;

    const char* read_all() {
        for (int64_t at = 2; at + 4 <= file_.count;) {
            if (file_.byte(at) != 0xFF) return "a marker is missing";
            const int marker = file_.byte(at + 1);
            if (marker == 0xFF) {  // padding
                ++at;
                continue;
            }
            if (marker == kStartOfScan || marker == kEndOfImage) return nullptr;
            const int64_t length = file_.word(at + 2, false);
            if (length < 2 || at + 2 + length > file_.count) return "a segment is truncated";
            if (const char* wrong = take(marker, {file_.data + at + 4, length - 2})) return wrong;
            at += 2 + length;
        }
        return nullptr;
    }

    const char* take(int marker, const Bytes& segment) {
        constexpr char kExif[] = "Exif\0", kXmp[] = "http://ns.adobe.com/xap/1.0/";  // the final zeros belong to them
        if (is_frame(marker)) {
            if (has_frame_) return "it has two frame headers";
            has_frame_ = true;
            return read_frame(marker, segment, header_);
        }
        if (marker != kApp1) return nullptr;
        if (segment.begins_with(kExif, sizeof kExif) && !has_exif_) {  // more of them go on with the first
            has_exif_ = true;
            exif_ = exif_orientation(segment.after(sizeof kExif));
        } else if (segment.begins_with(kXmp, sizeof kXmp)) {
            xmp_ = xmp_orientation(segment.after(sizeof kXmp));
        }
        return nullptr;
    }
};

}  // namespace

const char* jpeg_header(const uint8_t* data, int64_t bytes, JpegHeader* header) noexcept {
    const Bytes file{data, bytes};
    if (!file.begins_with("\xFF\xD8", 2)) return "it is no JPEG";
    return Segments(file, header).read();
}

}  // namespace engine
