#include "dispatch.h"

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

}  // namespace

const InstructionSet* instruction_sets() { return kSets; }

}  // namespace engine
