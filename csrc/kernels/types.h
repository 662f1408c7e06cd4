// Number types and inlining shared by every kernel: no torch, no CUDA headers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PETX_HD __host__ __device__
#else
#define PETX_HD
#endif
// Row loops are compiled once per instruction set (cpu/isa.h); what they call must melt into them.
#define PETX_INLINE PETX_HD __attribute__((always_inline)) inline

namespace petx {

enum class DType : int32_t { f32, f64, bf16, f16 };

// Storage only: arithmetic happens in float. A GPU converts by an instruction, to the same values, NaN's bits excepted.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The type a storage type is computed in.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<Half> {
  static constexpr DType value = DType::f16;
};

template <class To, class From>
PETX_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

PETX_INLINE float load(float v) { return v; }
PETX_INLINE double load(double v) { return v; }
PETX_INLINE float load(BFloat16 v) { return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

// Shift exponent and mantissa into place, then scale by 2^112 so that subnormals come out right;
// what lands at or above 65536 was infinity or NaN and gets the float's all-ones exponent.
PETX_INLINE float load(Half v) {
#if defined(__CUDA_ARCH__)
  float to;
  asm("cvt.f32.f16 %0, %1;" : "=f"(to) : "h"(v.bits));
  return to;
#else
  uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7fff) << 13;
  uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000) << 16;
  float scaled = bit_cast<float>(magnitude) * bit_cast<float>(0x77800000u);
  uint32_t bits = bit_cast<uint32_t>(scaled);
  bits = scaled >= 65536.0f ? (bits | 0x7f800000u) : bits;
  return bit_cast<float>(bits | sign);
#endif
}

PETX_INLINE void store(float& to, float v) { to = v; }
PETX_INLINE void store(double& to, double v) { to = v; }

// Round to nearest even.
PETX_INLINE void store(BFloat16& to, float v) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
#else
  uint32_t bits = bit_cast<uint32_t>(v);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(v != v ? 0x7fc0u : rounded);
#endif
}

// Normal numbers: rebias the exponent and round to nearest even in integers. Subnormals: adding 0.5 lets the
// float adder do the rounding, since the last mantissa bit of 0.5 weighs half's smallest subnormal.
PETX_INLINE void store(Half& to, float v) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
#else
  uint32_t bits = bit_cast<uint32_t>(v);
  uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t normal = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(bits) + 0.5f) - 0x3f000000u;
  uint32_t half = bits < 0x38800000u ? subnormal : normal;
  half = bits >= 0x47800000u ? 0x7c00u : half;
  half = bits > 0x7f800000u ? 0x7e00u : half;
  to.bits = static_cast<uint16_t>(half | sign);
#endif
}

}  // namespace petx
