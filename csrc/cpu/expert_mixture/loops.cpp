// Instantiates the expert mixture's row loops for float32 and float64, for every instruction set.

#include "cpu/expert_mixture/loops.h"

namespace petx::cpu {

PETX_INSTANTIATE_WHOLE(ExpertMixtureLoops, expert_mixture_loops)

}  // namespace petx::cpu
