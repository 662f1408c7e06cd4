// What the drivers of query_transformation (forward.cpp, backward.cpp) and its row loops agree on.
//
// T is the storage type of the tensors, C the compute type; G is not used. `scale` and `shift` are f a and f b. Strides
// are values from one row to the next; what a call makes is dense.
#pragma once

#include "kernels/types.h"

namespace petx::cpu {

template <class T, class G>
struct QueryTransformationLoops {
  using C = Compute<T>;
  // y = to + x scale + shift; `to` may be null.
  void (*forward)(const T* x, int64_t x_stride, const T* to, int64_t to_stride, const C* scale, const C* shift,
                  int64_t rows, int64_t width, T* y);
  // dx = dout scale, and adds dout x to dscale and dout to dshift; each may be null.
  void (*backward)(const T* dout, int64_t dout_stride, const T* x, int64_t x_stride, const C* scale, int64_t rows,
                   int64_t width, T* dx, C* dscale, C* dshift);
};

// Defined in query_transformation/loops.cpp for the pairs that with_types (products.h) names.
template <class T, class G>
const QueryTransformationLoops<T, G>& query_transformation_loops();

}  // namespace petx::cpu
