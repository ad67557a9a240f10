// Which instruction sets were compiled, which of them this machine has, and the algorithms of the one in use.
#pragma once

#include "convolution.h"

namespace engine {

struct InstructionSet {
    const char* name;                    // "avx512", "avx2" or "baseline"
    bool (*supported)();                 // by this machine
    const Algorithm* const* algorithms;  // ends with null
};

// All that were compiled, the best first; the last is "baseline", which every machine of this kind has. Ends with a
// null name.
const InstructionSet* instruction_sets();

}  // namespace engine
