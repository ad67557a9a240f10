// Rounding on the CPU, as csrc/cpu/rounding offers it for each instruction set.
#pragma once

#include "../rounding.h"

namespace engine {

// All may be called from any thread, with a number of threads to use; results are the same for any, and for any
// instruction set.
struct RoundingKernels {
    void (*fixed_float)(const RoundingCall&, int threads);
    void (*fixed_double)(const RoundingCall&, int threads);
    void (*bfloat16)(const RoundingCall&, int threads);
    void (*float16)(const RoundingCall&, int threads);
    void (*add_bfloat16)(const RoundingCall&, int threads);
    void (*add_compensated)(const RoundingCall&, int threads);
};

// Those of an instruction set of instruction_sets(); null if there is none of that name.
const RoundingKernels* rounding_kernels(const char* instruction_set);

}  // namespace engine
