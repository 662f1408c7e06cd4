// Instantiates the row loops of mode_update for every pair of types and every instruction set.

#include "cpu/common/loops.h"
#include "cpu/mode_update/rows.h"
#include "kernels/philox.h"

#define PETX_ISA_BODY "cpu/mode_update/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

PETX_LOOPS(ModeUpdateLoops, mode_update_loops)
PETX_INSTANTIATE_WHOLE(ModeUpdateLoops, mode_update_loops)
PETX_INSTANTIATE_16BIT(ModeUpdateLoops, mode_update_loops)

}  // namespace petx::cpu
