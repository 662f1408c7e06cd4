// What forward and backward of mode_cores share: a block of the gated core, in the types that the GEMMs want.
//
//   M = P gate(C)^T;  dgate(C) = dM^T P;  dP = dM gate(C)     C as [R^2, R], P [n, R], M [n, R^2]
//
// A block of C's rows is gated into scratch and multiplied while it is in cache, so gate(C) never reaches memory. A
// diagonal core is R values, for which plain loops do.
#pragma once

#include "cpu/common/products.h"
#include "cpu/mode_cores/rows.h"
#include "kernels/mode_cores.h"

namespace petx::cpu {

template <class T, class G>
class ModeCoresCall {
  using C = Compute<T>;

 public:
  explicit ModeCoresCall(const ModeCoresParams& p)
      : loops(mode_cores_loops<T, G>()), inverse_temperature(C(1 / p.temperature)), p_(p) {
    if constexpr (!std::is_same_v<T, G>) own_vectors_ = buffer<G>(p.modes * p.rank);
    vectors = host::matrix(operand(mode(0), p.modes * p.rank, own_vectors_), p.modes, p.rank);
    if (!p.threshold) return;
    thresholds_ = buffer<C>(p.rank);
    for (int64_t k = 0; k < p.rank; ++k) thresholds_[k] = load(static_cast<const T*>(p.threshold)[p.each ? k : 0]);
  }

  const T* core(int64_t row) const { return static_cast<const T*>(p_.core) + row * p_.rank; }
  const T* mode(int64_t n) const { return static_cast<const T*>(p_.vectors) + n * p_.rank; }
  const C* thresholds() const { return thresholds_.get(); }  // one for each rank, null with no gate
  C threshold(int64_t k) const { return thresholds_ ? thresholds_[k] : C(0); }

  // Scratch for `rows` rows of the gated core, empty if the core itself is the operand.
  Buffer<G> gate_buffer(int64_t rows) const { return buffer<G>(gates_into_scratch() ? rows * p_.rank : 0); }

  // Rows [first, first + m) of the gated core [m, R].
  host::Matrix gated_rows(int64_t first, int64_t m, const Buffer<G>& scratch) const {
    if constexpr (std::is_same_v<T, G>)
      if (!gates_into_scratch()) return host::matrix(core(first), m, p_.rank);
    loops.gate(p_.gate, core(first), thresholds(), inverse_temperature, m, p_.rank, scratch.get());
    return host::matrix(scratch.get(), m, p_.rank);
  }

  // Columns [first, first + m) of all modes' cores as rows of R^2 values.
  host::Matrix columns(const T* cores, int64_t first, int64_t m) const {
    return host::matrix(cores + first, p_.modes, m, p_.slices());
  }

  // The gated values [R] of a diagonal core.
  Buffer<C> gated_diagonal() const {
    auto values = buffer<C>(p_.rank);
    with_gate(p_.gate, [&]<Gate kind>() {
      for (int64_t k = 0; k < p_.rank; ++k)
        values[k] = gated<kind>(C(load(core(0)[k])), threshold(k), inverse_temperature);
    });
    return values;
  }

  const ModeCoresLoops<T, G>& loops;
  const C inverse_temperature;
  host::Matrix vectors;  // P [n, R]

 private:
  bool gates_into_scratch() const { return !std::is_same_v<T, G> || p_.gate != Gate::none; }

  const ModeCoresParams& p_;
  Buffer<G> own_vectors_;
  Buffer<C> thresholds_;
};

}  // namespace petx::cpu
