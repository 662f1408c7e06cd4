// What translated PTX calls for numbers: each function is one instruction, as the PTX ISA words it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "ptx/runtime/memory.h"
#include "ptx/runtime/warp.h"

namespace ptx {

// .ftz: subnormals are zeros of their sign.
inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// .sat: into [0, 1], NaN to zero.
inline float saturated(float x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; }

// a * b + c rounded towards minus infinity. The product is exact in double, the sum's error by Knuth's two-sum.
inline float fma_downward(float a, float b, float c) {
  double product = double(a) * b, sum = product + c;
  double part = sum - product, error = (product - (sum - part)) + (c - part);
  float rounded = static_cast<float>(sum);
  bool above = rounded > sum || (rounded == sum && error < 0);
  return above ? std::nextafter(rounded, -std::numeric_limits<float>::infinity()) : rounded;
}

// rcp.approx.ftz.f64: of the upper word, and only the upper word of the result.
inline double coarse_reciprocal(double x) {
  auto upper = [](double y) { return bits<double>(bits<uint64_t>(y) & 0xffffffff00000000u); };
  double from = upper(x);
  if (std::fpclassify(from) == FP_SUBNORMAL) from = std::copysign(0.0, from);
  return upper(1 / from);
}

// Conversion of a whole number in floating point: NaN to zero, beyond the range to its end.
template <class To, class From>
To clamped(From x) {
  if (std::isnan(x)) return 0;
  if (x <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (x >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return static_cast<To>(x);
}

// By zero PTX promises no value; the GPUs give all ones and the dividend.
template <class T>
T divided(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  return static_cast<T>(a / b);
}
template <class T>
T remaining(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}

template <class T>
auto high_product(T a, T b) {
  using Wide = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                                  std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
  return static_cast<std::make_unsigned_t<T>>(static_cast<Wide>(a) * static_cast<Wide>(b) >> 8 * sizeof(T));
}

// cvt to and from 16 bits: to nearest even; NaN has all of its mantissa's bits.
inline uint16_t bf16_of_float(float v) {
  uint32_t all = std::bit_cast<uint32_t>(v);
  return std::isnan(v) ? 0x7fff : static_cast<uint16_t>((all + 0x7fff + (all >> 16 & 1)) >> 16);
}
inline uint16_t f16_of_float(float v) {
  if (std::isnan(v)) return 0x7fff;
  double size = std::fabs(double(v));
  int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);  // subnormal numbers have the smallest one's steps
  int bits = size >= 65520 ? 0x7c00 : ((exponent + 14) << 10) + int(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return static_cast<uint16_t>(bits | (std::signbit(v) ? 0x8000 : 0));
}
inline float float_of_f16(uint16_t v) {
  int exponent = v >> 10 & 31, mantissa = v & 1023;
  float size = exponent ? std::ldexp(float(1024 + mantissa), exponent - 25) : std::ldexp(float(mantissa), -24);
  if (exponent == 31) size = mantissa ? std::bit_cast<float>(0x7fffffffu) : std::bit_cast<float>(0x7f800000u);
  return v & 0x8000 ? -size : size;
}

// Shifts by more than there are bits leave nothing, or the sign.
template <class T>
T shifted_left(T a, uint32_t by) {
  return by >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << by);
}
template <class T>
T shifted_right(T a, uint32_t by) {
  if (by >= 8 * sizeof(T)) return a < 0 ? static_cast<T>(-1) : T(0);
  return static_cast<T>(a >> by);
}

// bfi: the lowest `length` bits of a put into b at bit `at`.
template <class T>
T inserted(T a, T b, uint32_t at, uint32_t length) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  at &= 255, length &= 255;
  T mask = length >= kBits ? static_cast<T>(~T(0)) : static_cast<T>((T(1) << length) - 1);
  mask = shifted_left(mask, at);
  return static_cast<T>((shifted_left(a, at) & mask) | (b & static_cast<T>(~mask)));
}
// bfe: `length` bits of a from bit `at`, with their sign where the type has one.
template <class T>
T extracted(T a, uint32_t at, uint32_t length) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  at &= 255, length &= 255;
  if (!length) return 0;
  uint32_t top = std::min(at + length - 1, kBits - 1);
  bool negative = std::is_signed_v<T> && static_cast<std::make_unsigned_t<T>>(a) >> top & 1;
  std::make_unsigned_t<T> out = 0;
  for (uint32_t i = 0; i < kBits; ++i) {
    bool bit = i < length && at + i < kBits ? static_cast<std::make_unsigned_t<T>>(a) >> (at + i) & 1 : negative;
    out |= static_cast<std::make_unsigned_t<T>>(bit) << i;
  }
  return static_cast<T>(out);
}

// prmt: four of the eight bytes of a and b, or their signs.
inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t all = a | uint64_t(b) << 32;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    uint32_t which = selector >> 4 * i & 15;
    uint8_t byte = static_cast<uint8_t>(all >> 8 * (which & 7));
    if (which & 8) byte = byte & 0x80 ? 0xff : 0;
    out |= uint32_t(byte) << 8 * i;
  }
  return out;
}

// shf: the upper word of b:a shifted left, or the lower word of it shifted right.
template <bool left, bool wraps>
uint32_t funnel(uint32_t a, uint32_t b, uint32_t by) {
  by = wraps ? by & 31 : std::min(by, 32u);
  uint64_t all = a | uint64_t(b) << 32;
  return static_cast<uint32_t>(left ? all << by >> 32 : all >> by);
}

}  // namespace ptx
