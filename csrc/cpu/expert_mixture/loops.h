// The expert mixture's row loops, compiled for every instruction set. Included only where they are instantiated.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/common/loops.h"
#include "cpu/expert_mixture/rows.h"

#define PETX_ISA_BODY "cpu/expert_mixture/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

PETX_LOOPS_WITH_MATH(ExpertMixtureLoops, expert_mixture_loops)

}  // namespace petx::cpu
