// Instantiates the expert mixture's row loops for float32 and float64, for every instruction set.

#include "cpu/expert_mixture/loops.h"

namespace petx::cpu {

PETX_INSTANTIATE_WHOLE(ExpertRows, expert_rows)

}  // namespace petx::cpu
