// PETAL's learnable threshold on one value, and its derivatives: one source for CPU and GPU kernels, free of branches.
//
//   soft     sign(c) max(|c| - t, 0)
//   hard     c if |c| > t, else 0; straight-through gradient to c, the soft gate's to t
//   sigmoid  c sigma((|c| - t) / temperature)
//
// t may be negative or infinite. NaN stays NaN, in c and in t.
#pragma once

#include "kernels/math.h"

namespace petx {

enum class Gate : int32_t { none, soft, hard, sigmoid };

template <class C>
PETX_INLINE C magnitude(C c) {
  return c < C(0) ? -c : c;
}

template <class C>
PETX_INLINE C sign_of(C c) {
  return c > C(0) ? C(1) : c < C(0) ? C(-1) : C(0);
}

template <Gate kind, class C>
PETX_INLINE C gated(C c, C t, C inverse_temperature) {
  if constexpr (kind == Gate::none) return c;
  if constexpr (kind == Gate::sigmoid) return c * sigmoid((magnitude(c) - t) * inverse_temperature);
  bool below = magnitude(c) - t <= C(0);
  if constexpr (kind == Gate::hard) return (below ? C(0) : c) + C(0) * t;  // not a number if t is none
  return below ? C(0) : c - t * sign_of(c);
}

// By c and by t.
template <class C>
struct GateSlopes {
  C value, threshold;
};

template <Gate kind, class C>
PETX_INLINE GateSlopes<C> gate_slopes(C c, C t, C inverse_temperature) {
  if constexpr (kind == Gate::none) return {C(1), C(0)};
  if constexpr (kind == Gate::sigmoid) {
    C s = sigmoid((magnitude(c) - t) * inverse_temperature), steep = s * (C(1) - s) * inverse_temperature;
    return {s + magnitude(c) * steep, -c * steep};
  }
  // Of a threshold of NaN the hard gate keeps nothing, and the soft one cuts nothing off.
  if constexpr (kind == Gate::hard) return {C(1), magnitude(c) > t ? -sign_of(c) : C(0)};
  C sign = magnitude(c) <= t ? C(0) : sign_of(c);
  return {sign * sign, -sign};
}

// Calls f.operator()<kind>() with a gate known at run time, so that the choice stays outside the loops over values.
template <class F>
PETX_INLINE auto with_gate(Gate gate, const F& f) {
  switch (gate) {
    case Gate::soft:
      return f.template operator()<Gate::soft>();
    case Gate::hard:
      return f.template operator()<Gate::hard>();
    case Gate::sigmoid:
      return f.template operator()<Gate::sigmoid>();
    default:
      return f.template operator()<Gate::none>();
  }
}

// One value's gate, known at run time.
template <class C>
PETX_INLINE C gated(Gate kind, C c, C t, C inverse_temperature) {
  if (kind == Gate::soft) return gated<Gate::soft>(c, t, inverse_temperature);
  if (kind == Gate::hard) return gated<Gate::hard>(c, t, inverse_temperature);
  if (kind == Gate::sigmoid) return gated<Gate::sigmoid>(c, t, inverse_temperature);
  return c;
}
template <class C>
PETX_INLINE GateSlopes<C> gate_slopes(Gate kind, C c, C t, C inverse_temperature) {
  if (kind == Gate::soft) return gate_slopes<Gate::soft>(c, t, inverse_temperature);
  if (kind == Gate::hard) return gate_slopes<Gate::hard>(c, t, inverse_temperature);
  if (kind == Gate::sigmoid) return gate_slopes<Gate::sigmoid>(c, t, inverse_temperature);
  return {C(1), C(0)};
}

}  // namespace petx
