// The kernels of one instruction set, each in the source of its name.
#pragma once

#include "../rounding.h"

namespace engine::ENGINE_ISA {

void round_fixed_float(const RoundingCall& call, int threads);
void round_fixed_double(const RoundingCall& call, int threads);
void round_bfloat16(const RoundingCall& call, int threads);
void round_float16(const RoundingCall& call, int threads);
void add_bfloat16(const RoundingCall& call, int threads);
void add_compensated(const RoundingCall& call, int threads);

}  // namespace engine::ENGINE_ISA
