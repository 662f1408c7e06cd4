// Instantiates the loops of cp_reconstruct/rows.inl for every storage type and every instruction set.

#include "cpu/common/loops.h"
#include "cpu/cp_reconstruct/rows.h"

#define PETX_ISA_BODY "cpu/cp_reconstruct/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

template <class T>
const ReconstructRows<T>& reconstruct_rows() {
  static const ReconstructRows<T> chosen = PETX_BEST(rows_for<T>);
  return chosen;
}

template const ReconstructRows<double>& reconstruct_rows();
template const ReconstructRows<float>& reconstruct_rows();
template const ReconstructRows<BFloat16>& reconstruct_rows();
template const ReconstructRows<Half>& reconstruct_rows();

}  // namespace petx::cpu
