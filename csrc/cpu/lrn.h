// Local response normalisation on the CPU, as csrc/cpu/lrn offers it for each instruction set; see csrc/lrn.h.
#pragma once

#include "../lrn.h"

namespace engine {

// All may be called from any thread, with a number of threads to use; results are the same bits for any.
struct LrnKernels {
    void (*run_float)(const LrnCall&, int threads);
    void (*run_double)(const LrnCall&, int threads);
};

// Those of an instruction set of instruction_sets(); null if there is none of that name.
const LrnKernels* lrn_kernels(const char* instruction_set);

// The bytes of workspace that a call needs for elements of so many bytes. It begins anywhere an element may.
int64_t lrn_workspace(const LrnCall& call, bool backward, int element_bytes, int threads);

// Where what a thread keeps lies, in elements.

constexpr int64_t kLrnLanes = 16;    // of the longest vector
constexpr int64_t kLrnStrip = 256;   // places of a channel done together; the last strip has up to twice as many
constexpr int64_t kLrnBlock = 2048;  // elements of all channels that are done together, but one place at least
constexpr int kLrnThreads = 256;     // of a call

// Channels of one place with zeros on both sides, as far as a window or a vector reaches beyond them.
inline int64_t lrn_pitch(const LrnCall& call) {
    const int64_t beside = call.below > call.above ? call.below : call.above;
    return (call.channels + 2 * beside + 2 * kLrnLanes - 1) / kLrnLanes * kLrnLanes;
}

inline int64_t lrn_block_places(const LrnCall& call) {
    const int64_t places = kLrnBlock / lrn_pitch(call);
    return places < 1 ? 1 : places;
}

inline int64_t lrn_elements_of_thread(const LrnCall& call, bool backward) {
    if (call.innermost) return (backward ? 3 : 1) * lrn_block_places(call) * lrn_pitch(call);
    return backward ? 2 * (call.below + call.above + 1) * 2 * kLrnStrip : 0;
}

}  // namespace engine
