// Instantiates the row loops of mode_cores for every pair of types and every instruction set.

#include <type_traits>

#include "cpu/mode_cores/rows.h"

#define PETX_ISA_BODY "cpu/mode_cores/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

template <class T, class G>
const CoreRows<T, G>& core_rows() {
  static const CoreRows<T, G> chosen = [] {
#if PETX_X86
    if constexpr (!std::is_same_v<T, double>) {  // double calls libm, which no vector unit speeds up
      if (best_isa() == Isa::avx512) return avx512::core_rows_for<T, G>();
      if (best_isa() == Isa::avx2) return avx2::core_rows_for<T, G>();
    }
#endif
    return baseline::core_rows_for<T, G>();
  }();
  return chosen;
}

template const CoreRows<double, double>& core_rows();
template const CoreRows<float, float>& core_rows();
template const CoreRows<BFloat16, BFloat16>& core_rows();
template const CoreRows<BFloat16, float>& core_rows();
template const CoreRows<Half, float>& core_rows();

}  // namespace petx::cpu
