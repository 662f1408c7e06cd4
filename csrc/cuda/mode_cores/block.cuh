// What forward and backward of mode_cores compute alike: the gate, applied as a tile reads the core.
//
// Such an operand is computed, not copied, value by value; of 16-bit types in the storage type, in which the matrix
// units want it. Without a gate the core is an operand like any other.
#pragma once

#include "cuda/common/row_block.cuh"
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
  int64_t stride = p.rank;

  PETX_DEVICE Compute<T> operator()(int i, int64_t k) const {
    return i < count ? gated_at(line(transposed ? k : i) + (transposed ? i : k), transposed ? i : k) : Compute<T>(0);
  }
  PETX_DEVICE const T* line(int64_t l) const { return static_cast<const T*>(p.core) + begin + l * stride; }
  PETX_DEVICE T fetch(const T* from, int64_t along) const {
    T value;
    store(value, gated_at(from, along));
    return value;
  }
  PETX_DEVICE bool aligned() const { return false; }  // no pack is copied as it is

  PETX_DEVICE Compute<T> gated_at(const T* from, int64_t along) const {
    using C = Compute<T>;
    C value = load(read(from)), limit = threshold_of<T>(p, rank + along), inverse = p.inverse_temperature;
    return with_gate(p.gate, [&]<Gate kind>() { return gated<kind>(value, limit, inverse); });
  }
};

}  // namespace petx::cuda
