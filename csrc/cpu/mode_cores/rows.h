// What the driver of mode_cores (mode_cores/forward.cpp) and its row loops agree on.
//
// T is the storage type of the tensors, G the type matrix products run in, C the compute type. Rows have `rank` values,
// `thresholds` one for each of them, null with no gate.
#pragma once

#include "kernels/threshold_gate.h"
#include "kernels/types.h"

namespace petx::cpu {

template <class T, class G>
struct CoreRows {
  using C = Compute<T>;
  // to = gate(core).
  void (*gate)(Gate gate, const T* core, const C* thresholds, C inverse_temperature, int64_t rows, int64_t rank, G* to);
  // From the gradient of gate(core): dcore where not null, and added to `dthresholds`, summed over rows, where not
  // null.
  void (*slopes)(Gate gate, const T* core, const C* thresholds, C inverse_temperature, const G* grad, int64_t rows,
                 int64_t rank, C* dcore, C* dthresholds);
};

// Defined in mode_cores/loops.cpp for the pairs that with_types (products.h) names.
template <class T, class G>
const CoreRows<T, G>& core_rows();

}  // namespace petx::cpu
