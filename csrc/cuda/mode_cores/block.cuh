// What forward and backward of mode_cores compute alike: the gate, applied as a tile reads the core.
//
// Such an operand is computed, not copied, so every dtype uses the FMA tile: the arithmetic is a thousandth of a
// step's.
#pragma once

#include "cuda/common/token_sums.cuh"
#include "cuda/mode_cores/plan.h"

namespace petx::cuda {

// The call as kernels see it: constants in the type that they are used in, so that no kernel computes in double.
template <class C>
struct CoresCall : ModeCoresParams {
  C inverse_temperature;

  explicit CoresCall(const ModeCoresParams& p) : ModeCoresParams(p), inverse_temperature(C(1 / p.temperature)) {}
};

template <class T>
PETX_DEVICE Compute<T> threshold_of(const ModeCoresParams& p, int64_t k) {
  return p.threshold ? at<T>(p.threshold, p.each ? k : 0) : Compute<T>(0);
}

// gate(C) as one side of a product: rows of C along the ranks or, where `transposed`, ranks along C's rows. It begins
// at C's value number `begin`, of rank `rank`.
template <class T, bool transposed>
struct GatedCore {
  static constexpr bool kTransposed = transposed;
  const CoresCall<Compute<T>>& p;
  int64_t begin, rank, count;

  PETX_DEVICE Compute<T> operator()(int i, int64_t k) const {
    using C = Compute<T>;
    if (i >= count) return C(0);
    C value = at<T>(p.core, begin + (transposed ? i + k * p.rank : i * p.rank + k));
    C limit = threshold_of<T>(p, rank + (transposed ? i : k)), inverse = p.inverse_temperature;
    return with_gate(p.gate, [&]<Gate kind>() { return gated<kind>(value, limit, inverse); });
  }
};

}  // namespace petx::cuda
