// What goes into a tile of a matrix product, and where its result lies.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/common/primitives.cuh"

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
  // What lies consecutively in memory: vector l or, where turned, all vectors at depth l.
  PETX_DEVICE const T* line(int64_t l) const { return data + l * stride; }
  // Whether every line begins where sixteen bytes may be moved at once.
  PETX_DEVICE bool aligned() const {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % (16 / sizeof(T)) == 0;
  }
};

// Rows of two matrices of one width, one below the other: the first `head` vectors and those that follow.
template <class T>
struct JoinedRows {
  static constexpr bool kTurned = false;
  const T* first;
  const T* second;
  int64_t stride, head, count;

  PETX_DEVICE const T* line(int64_t l) const { return l < head ? first + l * stride : second + (l - head) * stride; }
  PETX_DEVICE Compute<T> operator()(int i, int64_t k) const {
    return i < count ? load(read(line(i) + k)) : Compute<T>(0);
  }
  PETX_DEVICE bool aligned() const {
    auto both = reinterpret_cast<uintptr_t>(first) | reinterpret_cast<uintptr_t>(second);
    return both % 16 == 0 && stride % (16 / sizeof(T)) == 0;
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
