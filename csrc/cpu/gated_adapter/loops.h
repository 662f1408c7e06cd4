// The VL-PET site's row loops, compiled for every instruction set, and the choice among them. Included only where
// they are instantiated.
#pragma once

#include <cmath>

#include "cpu/gated_adapter/call.h"
#include "kernels/philox.h"

#define PETX_ISA_BODY "cpu/gated_adapter/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

template <class T, class G>
const SiteRows<T, G>& site_rows() {
  static const SiteRows<T, G> rows = [] {
#if PETX_X86
    if constexpr (!std::is_same_v<T, double>) {  // double calls libm, which no vector unit speeds up
      if (best_isa() == Isa::avx512) return avx512::site_rows<T, G>();
      if (best_isa() == Isa::avx2) return avx2::site_rows<T, G>();
    }
#endif
    return baseline::site_rows<T, G>();
  }();
  return rows;
}

}  // namespace petx::cpu
