// Instantiates the expert mixture's row loops for float32 and float64, for every instruction set.

#include "cpu/expert_mixture/loops.h"

namespace petx::cpu {

template const ExpertRows<double, double>& expert_rows();
template const ExpertRows<float, float>& expert_rows();

}  // namespace petx::cpu
