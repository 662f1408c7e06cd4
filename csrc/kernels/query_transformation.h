// PETAL's query transformation: the interface between ops/ and the kernels (cpu/, cuda/).
//
//   y = to + f (x a + b)     by channel
//
// Shapes stand beside each pointer; N = rows, d = width, C = the compute type (double for f64, else float).
#pragma once

#include "kernels/types.h"

namespace petx {

// Where a tensor's N rows of d dense values lie: samples of `length` rows each.
struct RowPlaces {
  const void* data;
  int64_t sample, row;  // values from one sample, and from one row of it, to the next

  PETX_HD int64_t of(int64_t sample_number, int64_t row_number) const {
    return sample_number * sample + row_number * row;
  }
};

struct QueryTransformationParams {
  DType dtype;
  int64_t rows, length, width;  // N, rows of a sample, d
  double factor;                // f

  RowPlaces x, to;    // [N, d]; `to` may be null
  const void* scale;  // a [d]
  const void* shift;  // b [d], null in the backward
};

// Sums over rows are made in C in an order fixed by the shape, and stored in C or where bit i of `narrow` is set in the
// storage type: i counts the gradients from dx, 0, on. A CPU stores C alone. Null if not wanted.
struct QueryTransformationGrads {
  RowPlaces dout;  // [N, d]
  void* dx;        // [N, d], dense
  void* dscale;    // [d]
  void* dshift;    // [d]
  int64_t narrow;
};

namespace cpu {
void query_transformation_fwd(const QueryTransformationParams& p, void* y);
void query_transformation_bwd(const QueryTransformationParams& p, const QueryTransformationGrads& g);
}  // namespace cpu

namespace cuda {
// `stream` is a cudaStream_t; the launchers return a cudaError_t.
int query_transformation_fwd(const QueryTransformationParams& p, void* y, void* stream);
int64_t query_transformation_bwd_workspace(const QueryTransformationParams& p, const QueryTransformationGrads& g);
int query_transformation_bwd(const QueryTransformationParams& p, const QueryTransformationGrads& g, void* workspace,
                             void* stream);
}  // namespace cuda

}  // namespace petx
