#include "pictures.h"

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

#include "dispatch.h"
#include "images/image_transform.h"
#include "jpeg.h"
#include "picture_mistakes.h"

namespace engine {

#if defined(__x86_64__)
namespace avx512 {
extern const ImageTransform image_transform;
}
namespace avx2 {
extern const ImageTransform image_transform;
}
#endif
namespace baseline {
extern const ImageTransform image_transform;
}

namespace {

constexpr int64_t kMostKept = int64_t{64} << 20;   // bytes that a thread keeps for its next call

const ImageTransform* transform_of(const char* isa) {
    for (const InstructionSet* set = instruction_sets(); set->name; ++set) {
        if (std::strcmp(isa, set->name) != 0) continue;
        if (!set->supported()) return nullptr;
#if defined(__x86_64__)
        if (std::strcmp(isa, "avx512") == 0) return &avx512::image_transform;
        if (std::strcmp(isa, "avx2") == 0) return &avx2::image_transform;
#endif
        return &baseline::image_transform;
    }
    return nullptr;
}

int64_t now() {
    using std::chrono::steady_clock;
    return std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// Memory that grows and is a thread's own.
struct Scratch {
    void* memory = nullptr;
    int64_t capacity = 0;

    ~Scratch() { std::free(memory); }
    // At least so many bytes, aligned to cache lines; what was in it is gone. Null: there is not enough memory.
    void* take(int64_t bytes) {
        if (bytes <= capacity) return memory;
        release();
        memory = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
        capacity = memory ? bytes : 0;
        return memory;
    }
    void release() {
        std::free(memory);
        memory = nullptr;
        capacity = 0;
    }
};

struct ThreadMemory {
    Scratch read, workspace;
    JpegPart part{};

    ~ThreadMemory() { std::free(part.memory); }
    void trim() {
        if (read.capacity > kMostKept) read.release();
        if (workspace.capacity > kMostKept) workspace.release();
        if (part.capacity <= kMostKept) return;
        std::free(part.memory);
        part = JpegPart{};
    }
};

PictureFault fault(PictureFault::Kind kind, const char* reason) {
    PictureFault fault{};
    fault.kind = kind;
    std::snprintf(fault.reason, sizeof fault.reason, "%s", reason);
    return fault;
}

PictureFault refused(const char* reason) { return fault(PictureFault::kRefused, reason); }

// Whole numbers [first, last) of pixels.
struct Range {
    int64_t first, last;
};

// The pixels that an axis needs.
Range needed(const Axis& axis, bool is_reflected) {
    Range all{static_cast<int64_t>(axis.first), static_cast<int64_t>(axis.last)};
    if (is_reflected) return all;
    if (axis.low == axis.high) return {all.first, all.first};
    if (axis.scale == 1 && whole(axis.origin))
        return {static_cast<int64_t>(axis.origin + axis.low), static_cast<int64_t>(axis.origin + axis.high)};
    const double support = axis.scale > 1 ? axis.scale : 1;
    const double begin = std::floor(axis.origin + (axis.low + 0.5) * axis.scale - support);
    const double end = std::ceil(axis.origin + (axis.high - 0.5) * axis.scale + support);
    if (begin > axis.first) all.first = static_cast<int64_t>(begin);
    if (end < axis.last) all.last = static_cast<int64_t>(end);
    return all;
}

// The axis in an image decoded at `eighths` / 8 of its size, of which pixels from `begin` on are there, `count`.
Axis decoded(Axis axis, int64_t eighths, int64_t begin, int64_t count) {
    const double factor = static_cast<double>(eighths) / 8, skipped = static_cast<double>(begin);
    const double most = static_cast<double>(count);
    axis.origin = axis.origin * factor - skipped;
    axis.scale *= factor;
    axis.first = std::fmin(std::fmax(std::floor(axis.first * factor) - skipped, 0), most);
    axis.last = std::fmax(std::fmin(std::ceil(axis.last * factor) - skipped, most), axis.first);
    return axis;
}

// Has the processor fetch a small image that will be wanted soon: pictures are at random places of the memory.
void ask_for(const Picture& picture) {
    constexpr int64_t kLine = 64, kMost = 4096;
    if (picture.address == 0 || picture.bytes > kMost) return;
    const auto first = static_cast<uintptr_t>(picture.address);
    for (int64_t at = 0; at < picture.bytes; at += kLine)
        __builtin_prefetch(reinterpret_cast<const void*>(first + static_cast<uintptr_t>(at)));
}

// One call's work: pictures one after the other.
class Work {
public:
    Work(const ImageTransform& transform, const ImagePass& pass, bool scaled, void* out, PictureTimes& times,
         ThreadMemory& memory)
        : transform_(transform), pass_(pass), scaled_(scaled), out_(out), times_(times), memory_(memory) {}

    // All pictures, up to the first fault.
    PictureFault take(const Picture* pictures) {
        for (int64_t image = 0; image < pass_.images; ++image) {
            if (image + 1 < pass_.images) ask_for(pictures[image + 1]);
            PictureFault wrong = take(pictures[image], image);
            wrong.picture = image;
            if (wrong.kind != PictureFault::kNone) return wrong;
        }
        return {};
    }

private:
    const ImageTransform& transform_;
    const ImagePass& pass_;
    const bool scaled_;
    void* const out_;
    PictureTimes& times_;
    ThreadMemory& memory_;

    PictureFault take(const Picture& picture, int64_t image) {
        if (const char* reason = mistake(picture, pass_, image)) return refused(reason);
        const uint8_t* data = reinterpret_cast<const uint8_t*>(picture.address);
        if (!data || picture.checksum >= 0) {
            const int64_t begun = now();
            const PictureFault wrong = read(picture, image, data);
            times_.read += now() - begun;
            if (wrong.kind != PictureFault::kNone) return wrong;
        }
        const Axis* axes = pass_.axes + 2 * image;
        if (picture.encoding == kJpeg) return decode(picture, data, axes, image);
        const int64_t channels = picture.encoding == kPlanar ? 1 : pass_.channels;
        const Pixels pixels{data, channels * picture.width, channels,
                            picture.encoding == kPlanar ? picture.height * picture.width : 1};
        return transform(axes, pixels, image);
    }

    // Reads and checks a record.
    PictureFault read(const Picture& picture, int64_t image, const uint8_t*& data) {
        PictureFault wrong{};
        if (!data) wrong = read_file(picture, image, data);
        if (wrong.kind == PictureFault::kNone && picture.checksum >= 0 &&
            static_cast<int64_t>(crc32c(data, picture.bytes)) != picture.checksum)
            wrong.kind = PictureFault::kChecksum;
        return wrong;
    }

    // From its file: all of it, or if it is pixels and not checked, the rows that are needed.
    PictureFault read_file(const Picture& picture, int64_t image, const uint8_t*& data) {
        auto* to = static_cast<uint8_t*>(memory_.read.take(picture.bytes + 1));
        if (!to) return refused("there is not enough memory to read it");
        data = to;
        if (picture.encoding == kJpeg || picture.checksum >= 0) return read_bytes(picture, 0, picture.bytes, to);
        const Range rows = needed(pass_.axes[2 * image], pass_.border == kReflected);
        const int64_t planes = picture.encoding == kPlanar ? pass_.channels : 1, plane = picture.bytes / planes;
        PictureFault wrong{};
        for (int64_t begin = 0; begin < picture.bytes && wrong.kind == PictureFault::kNone; begin += plane)
            wrong = read_bytes(picture, begin + plane / picture.height * rows.first,
                               begin + plane / picture.height * rows.last, to);
        return wrong;
    }

    // Bytes [have, end) of a record, to where they belong in it.
    static PictureFault read_bytes(const Picture& picture, int64_t have, int64_t end, uint8_t* to) {
        while (have < end) {
            const ssize_t got = pread(static_cast<int>(picture.file), to + have, static_cast<size_t>(end - have),
                                      picture.offset + have);
            if (got > 0) {
                have += got;
            } else if (got == 0) {
                return fault(PictureFault::kEnded, "");
            } else if (errno != EINTR) {
                PictureFault unreadable = fault(PictureFault::kUnreadable, "");
                unreadable.error = errno;
                return unreadable;
            }
        }
        return {};
    }

    PictureFault decode(const Picture& picture, const uint8_t* data, const Axis* axes, int64_t image) {
        const int64_t begun = now();
        const bool is_reflected = pass_.border == kReflected;
        const Range rows = needed(axes[0], is_reflected), columns = needed(axes[1], is_reflected);
        if (rows.first == rows.last || columns.first == columns.last)  // all is border
            return transform(axes, {data, 0, pass_.channels, 1}, image);
        int64_t eighths = 8;
        const double scale = axes[0].scale < axes[1].scale ? axes[0].scale : axes[1].scale;
        while (scaled_ && eighths > 1 && scale * static_cast<double>(eighths / 2) / 8 >= 1) eighths /= 2;
        PictureFault damaged = fault(PictureFault::kDamaged, "");
        JpegPart& part = memory_.part;
        const bool good =
            decode_jpeg(data, picture.bytes, pass_.channels, eighths, rows.first, rows.last, columns.first,
                        columns.last, &part, damaged.reason, static_cast<int64_t>(sizeof damaged.reason));
        times_.decode += now() - begun;
        if (!good) return damaged;
        if (part.height != (picture.height * eighths + 7) / 8 || part.width != (picture.width * eighths + 7) / 8)
            return fault(PictureFault::kDamaged, "it is not of the size that was told");
        const Axis mapped[2] = {decoded(axes[0], eighths, part.top, part.rows),
                                decoded(axes[1], eighths, part.left, part.columns)};
        for (const Axis& axis : mapped)
            if (!(axis.first < axis.last)) return fault(PictureFault::kDamaged, "the part that is wanted is missing");
        return transform(mapped, {part.memory, part.row, pass_.channels, 1}, image);
    }

    PictureFault transform(const Axis* axes, const Pixels& pixels, int64_t image) {
        const auto rows = static_cast<int64_t>(axes[0].last - axes[0].first);
        const auto columns = static_cast<int64_t>(axes[1].last - axes[1].first);
        void* workspace = memory_.workspace.take(transform_.workspace(pass_, rows, columns));
        if (!workspace) return refused("there is not enough memory to transform it");
        const int64_t sizes[3] = {1, 4, 2};  // bytes of a number of the output: of bytes, float32 and bfloat16
        const int64_t bytes = pass_.channels * pass_.height * pass_.width * sizes[pass_.output];
        transform_.run(pass_, image, axes, pixels, static_cast<char*>(out_) + image * bytes, workspace);
        return {};
    }
};

}  // namespace

PictureFault transform_pictures(const char* isa, const Picture* pictures, const ImagePass& pass, bool scaled, void* out,
                                PictureTimes* times) noexcept {
    thread_local ThreadMemory memory;
    *times = PictureTimes{};
    const ImageTransform* transform = transform_of(isa);
    if (!transform) return refused("this machine has no such instruction set");
    if (const char* reason = mistake(pass)) return refused(reason);
    if (pass.images == 0) return {};
    const int64_t begun = now();
    Work work(*transform, pass, scaled, out, *times, memory);
    const PictureFault wrong = work.take(pictures);
    times->transform = now() - begun - times->read - times->decode;
    memory.trim();
    return wrong;
}

}  // namespace engine
