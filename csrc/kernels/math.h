// Element-wise functions and their derivatives: one source for CPU and GPU kernels.
//
// The float forms are branch-free polynomials of our own fit, so that a compiler can run them on whole vectors:
// exp to 1 unit in the last place, the normal distribution function to 1e-7 relative. The double forms call libm.
#pragma once

#include <cmath>

#include "kernels/types.h"

namespace petx {

enum class Activation : int32_t { gelu_tanh, gelu };

// `rough`: for what is rounded to 16 bits afterwards. On a GPU its approximate instructions, to some units in the last
// place of a float; elsewhere no different.
template <bool rough = false>
PETX_INLINE double exponential(double x) {
  return exp(x);
}

template <bool rough = false>
PETX_INLINE float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return rough ? __expf(x) : expf(x);
#else
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer part lands in the low mantissa bits
  float n = shifted - 12582912.0f;
  float r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  float p = 1.38368155e-3f;
  p = p * r + 8.37484002e-3f;
  p = p * r + 4.16682288e-2f;
  p = p * r + 1.66664198e-1f;
  p = p * r + 4.99999911e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t exponent = (bit_cast<uint32_t>(shifted) - 0x4b400000u + 127u) << 23;
  return p * bit_cast<float>(exponent);
#endif
}

template <bool rough, class C>
PETX_INLINE C reciprocal(C x) {
#if defined(__CUDA_ARCH__)
  if constexpr (rough) return __fdividef(1.0f, x);
#endif
  return C(1) / x;
}

template <bool rough = false, class C>
PETX_INLINE C sigmoid(C x) {
  return reciprocal<rough>(C(1) + exponential<rough>(-x));
}

// Normal distribution function, 1/2 erfc(-x / sqrt 2).
template <bool rough = false>
PETX_INLINE double normal_cdf(double x) {
  return 0.5 * erfc(-x * 0.70710678118654752440);
}

template <bool rough = false>
PETX_INLINE float normal_cdf(float x) {
  float u = fabsf(x) * 0.707106781f;
  float t = reciprocal<rough>(1.0f + 0.4f * u);  // erfcx(u) = t * polynomial(t)
  float p = -0.00599263329f;
  p = p * t + 0.0781791583f;
  p = p * t - 0.23768878f;
  p = p * t + 0.227987215f;
  p = p * t - 0.0433885157f;
  p = p * t + 0.156195596f;
  p = p * t + 0.165098369f;
  p = p * t + 0.208292231f;
  p = p * t + 0.225640908f;
  p = p * t + 0.225676507f;
  float tail = 0.5f * t * p * exponential<rough>(-u * u);
  return x < 0.0f ? tail : 1.0f - tail;
}

// z * sigmoid(2 sqrt(2/pi) (z + 0.044715 z^3)) is the tanh form: (1 + tanh a) / 2 = sigmoid(2 a).
template <Activation kind, bool rough = false, class C>
PETX_INLINE C gelu(C z) {
  if constexpr (kind == Activation::gelu) return z * normal_cdf<rough>(z);
  return z * sigmoid<rough>(C(1.5957691216057308) * (z + C(0.044715) * z * z * z));
}

template <Activation kind, bool rough = false, class C>
PETX_INLINE C gelu_derivative(C z) {
  if constexpr (kind == Activation::gelu) {
    return normal_cdf<rough>(z) + z * C(0.3989422804014327) * exponential<rough>(C(-0.5) * z * z);
  }
  C s = sigmoid<rough>(C(1.5957691216057308) * (z + C(0.044715) * z * z * z));
  return s + z * s * (C(1) - s) * C(1.5957691216057308) * (C(1) + C(0.134145) * z * z);
}

}  // namespace petx
