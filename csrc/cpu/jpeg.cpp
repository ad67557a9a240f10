#include "jpeg.h"

#include <cstdio>
#include <cstdlib>

#if defined(ENGINE_JPEG)
#include <csetjmp>
// jpeglib.h needs stdio's types before it.
#include <jpeglib.h>
#include <jerror.h>
#endif

namespace engine {

#if !defined(ENGINE_JPEG)

bool jpeg_decodes() noexcept { return false; }

bool decode_jpeg(const uint8_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, JpegPart*, char* reason,
                 int64_t room) noexcept {
    std::snprintf(reason, static_cast<size_t>(room), "this build cannot decode JPEG");
    return false;
}

#else

namespace {

constexpr int64_t kMostPixels = 178956970;  // beyond it Pillow refuses an image as a decompression bomb
constexpr int64_t kSlack = 128;             // bytes behind the last row, which vectors may read

struct Errors {
    jpeg_error_mgr manager;
    std::jmp_buf escape;
    bool damaged;
    char text[JMSG_LENGTH_MAX];
};

Errors& errors_of(j_common_ptr info) { return *reinterpret_cast<Errors*>(info->err); }

[[noreturn]] void on_error(j_common_ptr info) {
    Errors& errors = errors_of(info);
    info->err->format_message(info, errors.text);
    std::longjmp(errors.escape, 1);
}

// What libjpeg goes on after with pixels that it made up. Its other warnings, of bytes too many between two markers
// or of numbers that nobody needs, are of files that cameras wrote and that show what they should.
bool invents_pixels(int code) {
    return code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE || code == JWRN_ARITH_BAD_CODE ||
           code == JWRN_JPEG_EOF || code == JWRN_MUST_RESYNC;
}

void on_message(j_common_ptr info, int level) {
    Errors& errors = errors_of(info);
    if (level >= 0 || errors.damaged || !invents_pixels(info->err->msg_code)) return;
    errors.damaged = true;
    info->err->format_message(info, errors.text);
}

void say_nothing(j_common_ptr) {}

struct Range {
    int64_t first, last;
};

// What is wanted of an image; rows and columns are those of the full-sized one.
struct Request {
    int64_t channels, eighths;
    Range rows, columns;
};

bool lies_in(Range range, int64_t size) { return 0 <= range.first && range.first < range.last && range.last <= size; }

// Pixels of the scaled image that those of the full-sized one lie in.
Range scaled(Range range, int64_t eighths, int64_t size) {
    const int64_t first = range.first * eighths / 8, last = (range.last * eighths + 7) / 8;
    return {first < size ? first : size - 1, last < size ? last : size};
}

// Whether memory for `bytes` is there.
bool grow(JpegPart* part, int64_t bytes) {
    if (part->capacity >= bytes) return true;
    void* const memory = std::realloc(part->memory, static_cast<size_t>(bytes));
    if (!memory) return false;
    part->memory = static_cast<uint8_t*>(memory);
    part->capacity = bytes;
    return true;
}

// By how many eighths a component is decoded: more than the image where it has fewer samples, so that they need not
// be interpolated.
int64_t eighths_of(const jpeg_component_info& component) {
#if JPEG_LIB_VERSION >= 70
    return component.DCT_h_scaled_size;
#else
    return component.DCT_scaled_size;
#endif
}

// Whether some of the columns can be decoded alone: jpeg_crop_scanline reckons the width of a component that is
// decoded at another size than the image as if it were not, and then the rest of it is not interpolated.
bool can_crop(const jpeg_decompress_struct& info, int64_t eighths) {
    for (int number = 0; number < info.num_components; ++number) {
        const jpeg_component_info& component = info.comp_info[number];
        const int64_t own = eighths_of(component);
        const bool is_whole = component.h_samp_factor * own == info.max_h_samp_factor * eighths &&
                              component.v_samp_factor * own == info.max_v_samp_factor * eighths;
        if (own != eighths && !is_whole) return false;
    }
    return true;
}

// Interpolated colours near the edge of what is decoded are not those of a whole image, so a block more is decoded on
// either side.
Range with_margin(Range columns, int64_t block, int64_t size) {
    const int64_t first = columns.first - block, last = columns.last + block;
    return {first > 0 ? first : 0, last < size ? last : size};
}

// Whether gray is wanted of a file in colour. It is computed from red, green and blue, since what such a file holds as
// its gray differs by many levels where a colour was clipped.
bool mixes(const jpeg_decompress_struct& info, const Request& request) {
    return request.channels == 1 && info.num_components == 3;
}

// Chooses the columns and finds the memory, with room for a row in colour behind it; null or a reason. `rows` are those
// of the scaled image.
const char* prepare(jpeg_decompress_struct& info, const Request& request, Range rows, JpegPart* part) {
    part->eighths = request.eighths;
    part->height = info.output_height;
    part->width = info.output_width;
    Range columns{0, part->width};
    if (can_crop(info, request.eighths))
        columns = with_margin(scaled(request.columns, request.eighths, part->width),
                              info.max_h_samp_factor * request.eighths, part->width);
    JDIMENSION left = static_cast<JDIMENSION>(columns.first);
    JDIMENSION width = static_cast<JDIMENSION>(columns.last - columns.first);
    if (width < info.output_width) jpeg_crop_scanline(&info, &left, &width);
    part->left = left;
    part->columns = width;
    part->top = rows.first;
    part->rows = rows.last - rows.first;
    part->row = part->columns * request.channels;
    const int64_t mixed = mixes(info, request) ? 3 * part->columns : 0;
    return grow(part, part->rows * part->row + mixed + kSlack) ? nullptr : "there is not enough memory for it";
}

// Gray from red, green and blue: 0.299, 0.587 and 0.114 in units of 2^-16, rounded, as Pillow reckons.
void mix(const uint8_t* colours, int64_t columns, uint8_t* gray) {
    for (int64_t column = 0; column < columns; ++column, colours += 3)
        gray[column] =
            static_cast<uint8_t>((19595u * colours[0] + 38470u * colours[1] + 7471u * colours[2] + 32768u) >> 16);
}

// Decodes up to the last of the rows, into the part from the first of them on.
void read_rows(jpeg_decompress_struct& info, bool mixed, Range rows, const JpegPart& part) {
    while (static_cast<int64_t>(info.output_scanline) < rows.last) {
        const int64_t row = static_cast<int64_t>(info.output_scanline) - rows.first;
        uint8_t* const place = part.memory + (row > 0 ? row : 0) * part.row;
        JSAMPROW to = mixed ? part.memory + part.rows * part.row : place;
        jpeg_read_scanlines(&info, &to, 1);
        if (mixed) mix(to, part.columns, place);
    }
}

// Decodes what is wanted, null or a reason. libjpeg may leave it by a jump: it owns nothing.
const char* decode(jpeg_decompress_struct& info, const Request& request, JpegPart* part) {
    jpeg_read_header(&info, TRUE);
    if (info.num_components != 1 && info.num_components != 3) return "it is neither gray nor of three colours";
    if (static_cast<int64_t>(info.image_width) * info.image_height > kMostPixels) return "it has too many pixels";
    if (!lies_in(request.rows, info.image_height) || !lies_in(request.columns, info.image_width))
        return "what is wanted of it lies outside";
    // All else stays as libjpeg has it, and Pillow: the exact transform, interpolated colours.
    const bool mixed = mixes(info, request);
    info.out_color_space = request.channels == 1 && !mixed ? JCS_GRAYSCALE : JCS_RGB;
    info.scale_num = static_cast<unsigned>(request.eighths);
    info.scale_denom = 8;
    jpeg_start_decompress(&info);
    const Range rows = scaled(request.rows, request.eighths, info.output_height);
    if (const char* reason = prepare(info, request, rows, part)) return reason;
    // A row of blocks above is decoded too, because the first pixels wanted take part of their colour from it.
    const int64_t above = info.max_v_samp_factor * request.eighths;
    if (rows.first > above) jpeg_skip_scanlines(&info, static_cast<JDIMENSION>(rows.first - above));
    read_rows(info, mixed, rows, *part);
    return nullptr;
}

// What libjpeg jumps out of; null or a reason. It changes no variable of its own.
const char* attempt(jpeg_decompress_struct& info, Errors& errors, const uint8_t* data, int64_t bytes,
                    const Request& request, JpegPart* part) {
    if (setjmp(errors.escape)) return errors.text;
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, const_cast<uint8_t*>(data), static_cast<unsigned long>(bytes));
    const char* reason = decode(info, request, part);
    return reason || !errors.damaged ? reason : errors.text;
}

}  // namespace

bool jpeg_decodes() noexcept { return true; }

bool decode_jpeg(const uint8_t* data, int64_t bytes, int64_t channels, int64_t eighths, int64_t first_row,
                 int64_t last_row, int64_t first_column, int64_t last_column, JpegPart* part, char* reason,
                 int64_t room) noexcept {
    jpeg_decompress_struct info{};
    Errors errors{};
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = on_error;
    errors.manager.emit_message = on_message;
    errors.manager.output_message = say_nothing;
    const Request request{channels, eighths, {first_row, last_row}, {first_column, last_column}};
    const char* wrong = attempt(info, errors, data, bytes, request, part);
    jpeg_destroy_decompress(&info);
    if (wrong) std::snprintf(reason, static_cast<size_t>(room), "%s", wrong);
    return !wrong;
}

#endif

}  // namespace engine
