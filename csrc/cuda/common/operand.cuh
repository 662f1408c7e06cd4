// What goes into a tile of a matrix product, and where its result lies.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/common/primitives.cuh"

namespace petx::cuda {

// A matrix as one operand of a product: `count` rows along the depth (the reduction dimension); rows past `count` are
// zeros. By default a row is contiguous along the depth (K-major); `transposed`: contiguous across rows (MN-major).
template <class T, bool transposed>
struct Operand {
  static constexpr bool kTransposed = transposed;
  const T* data;
  int64_t stride;  // between rows or, if transposed, between depths
  int64_t count;

  PETX_DEVICE Compute<T> operator()(int i, int64_t k) const {
    if (i >= count) return Compute<T>(0);
    return load(read(data + (transposed ? i + k * stride : i * stride + k)));
  }
  // What is contiguous in memory: row l or, if transposed, all rows at depth l.
  PETX_DEVICE const T* line(int64_t l) const { return data + l * stride; }
  // What counts of the value that lies at `from`, which is number `along` of its line.
  PETX_DEVICE static T fetch(const T* from, int64_t) { return read(from); }
  // Whether every line begins where sixteen bytes may be moved at once.
  PETX_DEVICE bool aligned() const {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % (16 / sizeof(T)) == 0;
  }
};

// Rows of two matrices of one width, one below the other: the first `head` vectors and those that follow.
template <class T>
struct JoinedRows {
  static constexpr bool kTransposed = false;
  const T* first;
  const T* second;
  int64_t stride, head, count;

  PETX_DEVICE const T* line(int64_t l) const { return l < head ? first + l * stride : second + (l - head) * stride; }
  PETX_DEVICE static T fetch(const T* from, int64_t) { return read(from); }
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

// Where a result of `width` columns, a multiple of 32, has (row, column): XOR-swizzled, free of bank conflicts both for
// the fragments of a matrix product (eight rows of four pairs of columns) and for the owners of eight rows, each at
// every eighth column.
PETX_INLINE int result_place(int row, int column, int width = 64) {
  return row * width + (column ^ ((row & 7) + (row >> 1 & 3) * 8));
}

}  // namespace petx::cuda
