// The expert mixture's row loops, compiled for every instruction set, and the choice among them. Included only where
// they are instantiated.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/expert_mixture/rows.h"

#define PETX_ISA_BODY "cpu/expert_mixture/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

template <class T, class G>
const ExpertRows<T, G>& expert_rows() {
  static const ExpertRows<T, G> rows = [] {
#if PETX_X86
    if constexpr (!std::is_same_v<T, double>) {  // double calls libm, which no vector unit speeds up
      if (best_isa() == Isa::avx512) return avx512::expert_rows<T, G>();
      if (best_isa() == Isa::avx2) return avx2::expert_rows<T, G>();
    }
#endif
    return baseline::expert_rows<T, G>();
  }();
  return rows;
}

}  // namespace petx::cpu
