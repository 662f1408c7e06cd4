// Loops over a vector's values that every operation needs, for this machine's instruction set.
#pragma once

#include "kernels/types.h"

namespace petx::cpu {

// T is the storage type of the tensors, G the type matrix products run in, C the compute type.
template <class T, class G>
struct Vectors {
  using C = Compute<T>;
  void (*widen)(const T* from, int64_t count, C* to);
  void (*convert)(const T* from, int64_t count, G* to);
  void (*narrow)(const G* from, int64_t count, T* to);
  void (*add)(const G* product, int64_t count, T* to);
  void (*accumulate)(const G* part, int64_t count, C* to);
  // to = sum of `parts` vectors that lie `stride` apart, in order; added to what `to` holds if `more`.
  void (*reduce)(const C* from, int64_t parts, int64_t stride, int64_t count, bool more, C* to);
};

// Defined in vectors.cpp for the pairs that with_types (products.h) names.
template <class T, class G>
const Vectors<T, G>& vectors();

}  // namespace petx::cpu
