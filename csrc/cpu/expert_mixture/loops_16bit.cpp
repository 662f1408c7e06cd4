// Instantiates the expert mixture's row loops for the 16-bit types, for every instruction set. A file of its own, so
// that two cores share the compilation.

#include "cpu/expert_mixture/loops.h"

namespace petx::cpu {

PETX_INSTANTIATE_16BIT(ExpertMixtureLoops, expert_mixture_loops)

}  // namespace petx::cpu
