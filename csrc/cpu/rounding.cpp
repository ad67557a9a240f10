#include "rounding.h"

#include <cstring>

namespace engine {

#if defined(__x86_64__)
namespace avx512 {
extern const RoundingKernels rounding;
}
namespace avx2 {
extern const RoundingKernels rounding;
}
#endif
namespace baseline {
extern const RoundingKernels rounding;
}

const RoundingKernels* rounding_kernels(const char* instruction_set) {
#if defined(__x86_64__)
    if (std::strcmp(instruction_set, "avx512") == 0) return &avx512::rounding;
    if (std::strcmp(instruction_set, "avx2") == 0) return &avx2::rounding;
#endif
    return std::strcmp(instruction_set, "baseline") == 0 ? &baseline::rounding : nullptr;
}

}  // namespace engine
