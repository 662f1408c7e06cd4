// Instantiates the row loops of mode_update for every pair of types and every instruction set.

#include "cpu/mode_update/rows.h"
#include "kernels/philox.h"

#define PETX_ISA_BODY "cpu/mode_update/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

template <class T, class G>
const ModeRows<T, G>& mode_rows() {
  static const ModeRows<T, G> chosen = [] {
#if PETX_X86
    if (best_isa() == Isa::avx512) return avx512::mode_rows_for<T, G>();
    if (best_isa() == Isa::avx2) return avx2::mode_rows_for<T, G>();
#endif
    return baseline::mode_rows_for<T, G>();
  }();
  return chosen;
}

template const ModeRows<double, double>& mode_rows();
template const ModeRows<float, float>& mode_rows();
template const ModeRows<BFloat16, BFloat16>& mode_rows();
template const ModeRows<BFloat16, float>& mode_rows();
template const ModeRows<Half, float>& mode_rows();

}  // namespace petx::cpu
