// Instantiates the loops of vectors.inl for every pair of types and every instruction set.

#include "cpu/common/vectors.h"

#define PETX_ISA_BODY "cpu/common/vectors.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

template <class T, class G>
const Vectors<T, G>& vectors() {
  static const Vectors<T, G> chosen = [] {
#if PETX_X86
    if (best_isa() == Isa::avx512) return avx512::vectors_for<T, G>();
    if (best_isa() == Isa::avx2) return avx2::vectors_for<T, G>();
#endif
    return baseline::vectors_for<T, G>();
  }();
  return chosen;
}

template const Vectors<double, double>& vectors();
template const Vectors<float, float>& vectors();
template const Vectors<BFloat16, BFloat16>& vectors();
template const Vectors<BFloat16, float>& vectors();
template const Vectors<Half, float>& vectors();

}  // namespace petx::cpu
