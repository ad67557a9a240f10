#include "dispatch.h"

#include <initializer_list>

namespace engine {

// Every source of csrc/cpu/conv defines some of these, once per instruction set.
#define ENGINE_DECLARE(isa) \
    namespace isa { \
    extern const Algorithm naive, im2col, implicit, winograd2, winograd4, winograd6, fft, depthwise; \
    }
#define ENGINE_LIST(isa) \
    constexpr const Algorithm* isa##_algorithms[] = { \
        &isa::naive,     &isa::im2col,    &isa::implicit, &isa::winograd2, \
        &isa::winograd4, &isa::winograd6, &isa::fft,      &isa::depthwise, nullptr};

#if defined(__x86_64__)
ENGINE_DECLARE(avx512)
ENGINE_DECLARE(avx2)
#endif
ENGINE_DECLARE(baseline)

namespace {

#if defined(__x86_64__)
ENGINE_LIST(avx512)
ENGINE_LIST(avx2)

// What -march=x86-64-v4 and -v3 let the compiler use.
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif
ENGINE_LIST(baseline)

constexpr InstructionSet kSets[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, avx512_algorithms},
    {"avx2", has_avx2, avx2_algorithms},
#endif
    {"baseline", [] { return true; }, baseline_algorithms},
    {nullptr, nullptr, nullptr},
};

// Whether an axis gives `out` places, all sizes small enough that no product of them overflows.
bool fits(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, int64_t out) {
    constexpr int64_t kMost = int64_t{1} << 24;
    for (int64_t value : {size, kernel, stride, dilation, out})
        if (value < 1 || value > kMost) return false;
    if (padding < 0 || padding > kMost) return false;
    const int64_t places = size + 2 * padding - dilation * (kernel - 1);
    return places >= 1 && out == (places - 1) / stride + 1;
}

}  // namespace

const char* mistake(const ConvShape& s) {
    if (s.batch < 1 || s.channels < 1 || s.filters < 1 || s.groups < 1) return "a size is less than 1";
    if (s.channels % s.groups || s.filters % s.groups) return "channels and filters must be multiples of the groups";
    if (!fits(s.height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h, s.out_h) ||
        !fits(s.width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w, s.out_w))
        return "the sizes of images, filter and output do not fit together";
    return nullptr;
}

const InstructionSet* instruction_sets() { return kSets; }

}  // namespace engine
