// What Python calls (query_transformation.py): numbers and pointers in the order of QueryTransformationParams' members.

#include "kernels/query_transformation.h"

using namespace petx;

// Number `i` of the tensors whose rows may lie apart: their strides follow the sizes, two of each.
static RowPlaces places(const int64_t* integers, const void* data, int i) {
  return {data, integers[4 + 2 * i], integers[5 + 2 * i]};
}

// `integers`: dtype and sizes, strides of x and of `to` or dout, which gradients are narrow.
static QueryTransformationParams params(const int64_t* integers, double factor, void* const* tensors) {
  QueryTransformationParams p = {};
  p.dtype = static_cast<DType>(integers[0]);
  p.rows = integers[1], p.length = integers[2], p.width = integers[3], p.factor = factor;
  p.x = places(integers, tensors[0], 0), p.scale = tensors[1], p.shift = tensors[2];
  return p;
}

extern "C" int query_transformation_fwd(const int64_t* integers, const double* reals, void* const* tensors, void* y) {
  QueryTransformationParams p = params(integers, reals[0], tensors);
  p.to = places(integers, tensors[3], 1);
  return cuda::query_transformation_fwd(p, y, nullptr);
}

static QueryTransformationGrads grads(const int64_t* integers, void* const* tensors) {
  return {places(integers, tensors[0], 1), tensors[1], tensors[2], tensors[3], integers[8]};
}

extern "C" int64_t query_transformation_bwd_workspace(const int64_t* integers, const double* reals,
                                                      void* const* tensors, void* const* gradients) {
  return cuda::query_transformation_bwd_workspace(params(integers, reals[0], tensors), grads(integers, gradients));
}

extern "C" int query_transformation_bwd(const int64_t* integers, const double* reals, void* const* tensors,
                                        void* const* gradients, void* workspace) {
  return cuda::query_transformation_bwd(params(integers, reals[0], tensors), grads(integers, gradients), workspace,
                                        nullptr);
}
