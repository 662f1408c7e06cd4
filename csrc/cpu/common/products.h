// Which types an operation is computed in, and GEMMs over storage of another type.
#pragma once

#include <type_traits>

#include "cpu/common/scratch.h"
#include "cpu/common/vectors.h"
#include "kernels/host.h"

namespace petx::cpu {

// Most rows of a block. Measured on 2 cores with 1 MB of second-level cache each: bf16 GEMMs want longer blocks
// than float ones.
template <class G>
inline constexpr int64_t kMostRows = sizeof(G) == 2 ? 512 : 256;

template <class G>
void gemm(const host::Matrix& a, const host::Matrix& b, const host::Matrix& out, bool accumulate = false) {
  host::gemm(DTypeOf<G>::value, a, b, out, accumulate);
}

// Calls f.operator()<T, G>() for a storage dtype and the type its products run in.
template <class F>
void with_types(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64:
      return f.template operator()<double, double>();
    case DType::f32:
      return f.template operator()<float, float>();
    case DType::f16:
      return f.template operator()<Half, float>();
    case DType::bf16:
      return host::has_fast_bf16_gemm() ? f.template operator()<BFloat16, BFloat16>()
                                        : f.template operator()<BFloat16, float>();
  }
}

// Values of a tensor as operand of a product: in place if T is G, else converted into `into`, which
// operand_buffer made.
template <class T, class G>
const G* operand(const T* from, int64_t count, const Buffer<G>& into) {
  if constexpr (std::is_same_v<T, G>) {
    return from;
  } else {
    vectors<T, G>().convert(from, count, into.get());
    return into.get();
  }
}
template <class T, class G>
Buffer<G> operand_buffer(int64_t count) {
  return buffer<G>(std::is_same_v<T, G> ? 0 : count);
}

}  // namespace petx::cpu
