// The VL-PET site's row loops, compiled for every instruction set. Included only where they are instantiated.
#pragma once

#include <cmath>

#include "cpu/common/loops.h"
#include "cpu/gated_adapter/call.h"
#include "kernels/philox.h"

#define PETX_ISA_BODY "cpu/gated_adapter/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

PETX_LOOPS_WITH_MATH(GatedAdapterLoops, gated_adapter_loops)

}  // namespace petx::cpu
