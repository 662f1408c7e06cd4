// What the drivers of mode_cores (forward.cpp, backward.cpp) and its row loops agree on.
//
// T is the storage type of the tensors, G the type matrix products run in, C the compute type. Rows have `rank` values,
// `thresholds` one for each of them, null with no gate.
#pragma once

#include "kernels/threshold_gate.h"
#include "kernels/types.h"

namespace petx::cpu {

template <class T, class G>
struct ModeCoresLoops {
  using C = Compute<T>;
  // to = gate(core).
  void (*gate)(Gate gate, const T* core, const C* thresholds, C inverse_temperature, int64_t rows, int64_t rank, G* to);
  // From the gradient of gate(core): writes dcore, and adds the sum over rows to dthresholds; either may be
  // null.
  void (*slopes)(Gate gate, const T* core, const C* thresholds, C inverse_temperature, const G* grad, int64_t rows,
                 int64_t rank, C* dcore, C* dthresholds);
};

// Defined in mode_cores/loops.cpp for the pairs that with_types (products.h) names.
template <class T, class G>
const ModeCoresLoops<T, G>& mode_cores_loops();

}  // namespace petx::cpu
