// What goes into a tile of a matrix product, and where its result lies.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/primitives.cuh"

namespace petx::cuda {

// A matrix as one side of a product: `count` vectors along the depth; vectors past `count` are zeros. Consecutive in
// memory are a vector's values or, where `turned`, the vectors' values at one depth.
template <class T, bool turned>
struct Operand {
  static constexpr bool kTurned = turned;
  const T* data;
  int64_t stride;  // between vectors or, where turned, between depths
  int64_t count;

  PETX_DEVICE Compute<T> operator()(int i, int64_t k) const {
    if (i >= count) return Compute<T>(0);
    return load(read(data + (turned ? i + k * stride : i * stride + k)));
  }
};

template <class T>
using Rows = Operand<T, false>;
template <class T>
using Columns = Operand<T, true>;

// Where a result of 64 x 64 values has (row, column). Its columns are exchanged row by row, so that a warp finds its
// values in 32 different banks in either of the ways it goes about it: as the fragments of a matrix product, eight rows
// of four pairs of columns, and as the owners of eight rows, each of whom looks at every eighth column.
PETX_INLINE int result_place(int row, int column) { return row * 64 + (column ^ (row % 8 + row / 2 % 4 * 8)); }

}  // namespace petx::cuda
