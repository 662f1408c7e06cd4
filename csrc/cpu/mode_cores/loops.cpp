// Instantiates the row loops of mode_cores for every pair of types and every instruction set.

#include "cpu/common/loops.h"
#include "cpu/mode_cores/rows.h"

#define PETX_ISA_BODY "cpu/mode_cores/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

PETX_LOOPS_WITH_MATH(ModeCoresLoops, mode_cores_loops)
PETX_INSTANTIATE_WHOLE(ModeCoresLoops, mode_cores_loops)
PETX_INSTANTIATE_16BIT(ModeCoresLoops, mode_cores_loops)

}  // namespace petx::cpu
