// Instantiates the expert mixture's row loops for the 16-bit types, for every instruction set. A file of its own, so
// that two cores share the compilation.

#include "cpu/expert_mixture/loops.h"

namespace petx::cpu {

template const ExpertRows<BFloat16, BFloat16>& expert_rows();
template const ExpertRows<BFloat16, float>& expert_rows();
template const ExpertRows<Half, float>& expert_rows();

}  // namespace petx::cpu
