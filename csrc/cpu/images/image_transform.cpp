// One image from its pixels to the network's input: a few rows at a time, so that what they need stays in the first
// cache. Only what is finished leaves it, in the order of the memory: that is faster than channels side by side.
#include "image_transform.h"

#include "colour.h"
#include "rows.h"

namespace engine::ENGINE_ISA {
namespace {

// Where rows of the output go, by its layout and its type.
class Writer {
public:
    Writer(Memory& memory, const ImagePass& pass)
        : stride_(round_up(Rows::at_once(pass) * pass.width, 64) + 64),
          floats_(memory.array<float>(3 * stride_)),
          bytes_(memory.array<uint8_t>(3 * stride_)) {}

    // `count` rows from row y on.
    template <int channels>
    void write(const ImagePass& pass, const Colours& colours, const Erased* boxes, const uint8_t* const* from,
               int64_t y, int64_t count, void* out) const {
        if (pass.output == kBytes) return write_bytes<channels>(pass, boxes, from, y, count, static_cast<uint8_t*>(out));
        float* to[channels];
        for (int64_t c = 0; c < channels; ++c) to[c] = floats_ + c * stride_;
        colours.row<channels>(from, count * pass.width, to);
        erase<channels>(pass, boxes, y, count, to);
        if (pass.output == kBFloat16) return write_floats<channels>(pass, to, y, count, static_cast<uint16_t*>(out));
        write_floats<channels>(pass, to, y, count, static_cast<float*>(out));
    }

private:
    int64_t stride_;
    float* floats_;
    uint8_t* bytes_;

    static ENGINE_INLINE void put(float* to, Floats values) { store_past_caches(to, values); }
    static ENGINE_INLINE void put(uint16_t* to, Floats values) { store_bfloat16(to, values); }

    // Rows of floats, of which a few more can be read, in the output's type and layout.
    template <int channels, typename T>
    static void write_floats(const ImagePass& pass, const float* const* rows, int64_t y, int64_t count, T* out) {
        const int64_t pixels = count * pass.width, whole = pixels / kPixels * kPixels, left = pixels - whole;
        alignas(kVectorBytes) T memory[1 + 3 * kPixels];
        T* const rest = memory + 1;  // not aligned, so that it stays in the cache
        if (channels == 3 && pass.interleaved) {
            T* const to = out + 3 * y * pass.width;
            for (int64_t x = 0; x < whole; x += kPixels) put_together<channels>(rows, x, to + 3 * x);
            if (left == 0) return;
            put_together<channels>(rows, whole, rest);
            std::memcpy(to + 3 * whole, rest, static_cast<size_t>(3 * left) * sizeof(T));
            return;
        }
        for (int64_t c = 0; c < channels; ++c) {
            T* const to = out + (c * pass.height + y) * pass.width;
            for (int64_t x = 0; x < whole; x += kPixels) put(to + x, load(rows[c] + x));
            if (left == 0) continue;
            put(rest, load(rows[c] + whole));
            std::memcpy(to + whole, rest, static_cast<size_t>(left) * sizeof(T));
        }
    }

    template <int channels, typename T>
    static ENGINE_INLINE void put_together(const float* const* rows, int64_t x, T* to) {
        const Floats red = load(rows[0] + x), green = load(rows[channels / 2] + x), blue = load(rows[channels - 1] + x);
        put(to, interleaved_part<0>(red, green, blue, Each<float>{}));
        put(to + kPixels, interleaved_part<1>(red, green, blue, Each<float>{}));
        put(to + 2 * kPixels, interleaved_part<2>(red, green, blue, Each<float>{}));
    }

    template <int channels>
    void write_bytes(const ImagePass& pass, const Erased* boxes, const uint8_t* const* from, int64_t y, int64_t count,
                     uint8_t* out) const {
        const int64_t pixels = count * pass.width;
        const bool direct = channels == 1 || !pass.interleaved;
        uint8_t* to[channels];
        for (int64_t c = 0; c < channels; ++c) {
            to[c] = direct ? out + (c * pass.height + y) * pass.width : bytes_ + c * stride_;
            std::memcpy(to[c], from[c], static_cast<size_t>(pixels));
        }
        erase<channels>(pass, boxes, y, count, to);
        if constexpr (channels == 3)
            if (!direct)
                interleave(to[0], to[1], to[2], pixels, out + 3 * y * pass.width);
    }

    template <int channels, typename T>
    static void erase(const ImagePass& pass, const Erased* boxes, int64_t y, int64_t count, T* const* rows) {
        for (int64_t number = 0; number < pass.boxes; ++number) {
            const Erased& box = boxes[number];
            const int64_t top = larger(y, box.top), bottom = smaller(y + count, box.bottom);
            const int64_t left = larger(0, box.left), right = smaller(pass.width, box.right);
            for (int64_t c = 0; c < channels; ++c) {
                const T value = static_cast<T>(box.value[c]);
                for (int64_t line = top; line < bottom; ++line)
                    for (int64_t x = left; x < right; ++x) rows[c][(line - y) * pass.width + x] = value;
            }
        }
    }
};

// Everything that a run needs memory for.
struct Parts {
    Rows rows;
    Colours colours;
    Writer writer;
    Kept kept;

    Parts(Memory& memory, const ImagePass& pass, int64_t most_rows, int64_t most_columns)
        : rows(memory, pass, most_rows, most_columns), colours(memory, pass.changes), writer(memory, pass), kept{} {
        if (pass.changes == 0) return;
        kept.height = pass.height;
        kept.width = pass.width;
        kept.channels = pass.channels;
        kept.row = memory.array<float>(3 * kept.row_stride());
        kept.bytes = memory.array<uint8_t>(pass.channels * kept.plane_stride());
    }
};

int64_t workspace(const ImagePass& pass, int64_t rows, int64_t columns) {
    Memory memory(nullptr);
    Parts(memory, pass, rows, columns);
    return memory.bytes();
}

template <int channels>
void transform(const ImagePass& pass, int64_t image, const View& view, Parts& parts, void* out) {
    const uint8_t* rows[3];
    const bool twice = Colours::needs_mean(pass, image);
    parts.rows.prepare(pass, view);
    const int64_t most = Rows::at_once(pass);
    for (int64_t y = 0; twice && y < pass.height; y += most) {
        const int64_t count = smaller(most, pass.height - y);
        parts.rows.get(view, y, count, rows);
        parts.kept.keep(y, count, rows);
    }
    parts.colours.prepare(pass, image, parts.kept);
    const Erased* boxes = pass.erased + image * pass.boxes;
    for (int64_t y = 0; y < pass.height; y += most) {
        const int64_t count = smaller(most, pass.height - y);
        twice ? parts.kept.rows(y, rows) : parts.rows.get(view, y, count, rows);
        parts.writer.write<channels>(pass, parts.colours, boxes, rows, y, count, out);
    }
    all_stored();
}

void run(const ImagePass& pass, int64_t image, const Axis axes[2], const Pixels& pixels, void* out,
         void* space) {
    Memory memory(space);
    Parts parts(memory, pass, static_cast<int64_t>(axes[0].last - axes[0].first),
                static_cast<int64_t>(axes[1].last - axes[1].first));
    const View view(pass, image, axes, pixels);
    pass.channels == 3 ? transform<3>(pass, image, view, parts, out) : transform<1>(pass, image, view, parts, out);
}

}  // namespace

extern const ImageTransform image_transform = {workspace, run};

}  // namespace engine::ENGINE_ISA
