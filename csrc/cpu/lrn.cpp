#include "lrn.h"

#include <cstring>

namespace engine {

#if defined(__x86_64__)
namespace avx512 {
extern const LrnKernels lrn;
}
namespace avx2 {
extern const LrnKernels lrn;
}
#endif
namespace baseline {
extern const LrnKernels lrn;
}

const LrnKernels* lrn_kernels(const char* instruction_set) {
#if defined(__x86_64__)
    if (std::strcmp(instruction_set, "avx512") == 0) return &avx512::lrn;
    if (std::strcmp(instruction_set, "avx2") == 0) return &avx2::lrn;
#endif
    return std::strcmp(instruction_set, "baseline") == 0 ? &baseline::lrn : nullptr;
}

int64_t lrn_workspace(const LrnCall& call, bool backward, int element_bytes, int threads) {
    return lrn_elements_of_thread(call, backward) * element_bytes * (threads < kLrnThreads ? threads : kLrnThreads);
}

}  // namespace engine
