// Torch's threads and GEMM for the CPU kernels, which include no torch header. Implemented in ops/host.cpp.
// (`host`: the process that calls the kernels. Also the layout of a matrix for CUDA's hybrid path.)
#pragma once

#include <functional>

#include "kernels/types.h"

namespace petx::host {

// Calls body(begin, end) over [0, tasks) from torch's thread pool. A GEMM in `body` runs on one thread; if there is a
// single task, its GEMMs are split by their shapes alone. So results do not depend on the number of threads.
void parallel(int64_t tasks, const std::function<void(int64_t, int64_t)>& body);

// A row-major matrix, or its transpose by exchanged strides.
struct Matrix {
  void* data;
  int64_t rows, cols, row_stride, col_stride;
  Matrix transposed() const { return {data, cols, rows, col_stride, row_stride}; }
  Matrix with_data(void* other) const { return {other, rows, cols, row_stride, col_stride}; }
};

template <class T>
Matrix matrix(const T* data, int64_t rows, int64_t cols, int64_t row_stride = 0) {
  return {const_cast<T*>(data), rows, cols, row_stride ? row_stride : cols, 1};
}

// out = a b, or out += a b; accumulates in float (double for f64). One dtype for all three.
void gemm(DType dtype, const Matrix& a, const Matrix& b, const Matrix& out, bool accumulate = false);

// Whether this CPU multiplies bf16 matrices in hardware; if not, bf16 kernels multiply in float.
bool has_fast_bf16_gemm();

}  // namespace petx::host
