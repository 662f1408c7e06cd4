// Instantiates the loops of cp_reconstruct/rows.inl for every storage type and every instruction set.

#include "cpu/common/loops.h"
#include "cpu/cp_reconstruct/rows.h"

#define PETX_ISA_BODY "cpu/cp_reconstruct/rows.inl"
#include "cpu/common/foreach_isa.h"

namespace petx::cpu {

template <class T>
const CpReconstructLoops<T>& cp_reconstruct_loops() {
  static const CpReconstructLoops<T> chosen = PETX_BEST(loops_for<T>);
  return chosen;
}

template const CpReconstructLoops<double>& cp_reconstruct_loops();
template const CpReconstructLoops<float>& cp_reconstruct_loops();
template const CpReconstructLoops<BFloat16>& cp_reconstruct_loops();
template const CpReconstructLoops<Half>& cp_reconstruct_loops();

}  // namespace petx::cpu
