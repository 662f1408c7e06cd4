// petx::query_transformation_fwd / _bwd: schema, checks, allocation, launch.

#include "kernels/query_transformation.h"

#include "ops/arguments.h"
#ifdef USE_CUDA
#include "ops/cuda.h"
#endif

namespace petx {
namespace {

// Where the rows of `t` [..., L, d] lie, if samples, and the rows of each, lie evenly apart.
bool places(const Tensor& t, RowPlaces& to) {
  auto sizes = t.sizes(), strides = t.strides();
  const int64_t dims = t.dim();
  if (sizes[dims - 1] > 1 && strides[dims - 1] != 1) return false;
  to.row = dims > 1 ? strides[dims - 2] : 0;
  to.sample = 0;
  int64_t next = -1;  // of an expanded dimension 0
  for (int64_t i = dims - 3; i >= 0; --i) {
    if (sizes[i] == 1) continue;
    if (next < 0) to.sample = next = strides[i];
    if (strides[i] != next) return false;
    next *= sizes[i];
  }
  to.data = t.const_data_ptr();
  return true;
}

// A call's tensors as kernels read them: where they lie, or copied if their rows are not dense or not evenly apart.
class Laid {
 public:
  RowPlaces operator()(const Tensor& t) {
    RowPlaces found = {};
    if (!t.numel() || places(t, found)) return found;
    copies_.push_back(torch::stable::contiguous(t));
    places(copies_.back(), found);
    return found;
  }

 private:
  std::vector<Tensor> copies_;
};

QueryTransformationParams checked(const char* op, const Checker& check, const Tensor& x, const Tensor& scale,
                                  double factor) {
  QueryTransformationParams p = {};
  p.dtype = kernel_dtype(op, "x", x);
  p.rows = rows_of(op, "x", x);
  p.width = x.sizes().back();
  if (p.width < 1) fail(op, "x must be [..., d] with d of at least 1, got ", shape_text(x));
  p.length = x.dim() > 1 ? x.sizes()[x.dim() - 2] : 1;
  p.scale = check("scale", scale, {p.width});
  p.factor = factor;
  return p;
}

void fwd_on_cpu(const Tensor&, const QueryTransformationParams& p, void* y) { cpu::query_transformation_fwd(p, y); }

#ifdef USE_CUDA
void fwd_on_cuda(const Tensor& x, const QueryTransformationParams& p, void* y) {
  on_current_stream("query_transformation", x,
                    [&](void* stream) { return cuda::query_transformation_fwd(p, y, stream); });
}
#endif

template <void (*launch)(const Tensor& x, const QueryTransformationParams& p, void* y)>
Tensor fwd(Stack& stack) {
  const char* op = "query_transformation";
  auto x = stack.take<Tensor>(), scale = stack.take<Tensor>(), shift = stack.take<Tensor>();
  auto to = stack.take<OptionalTensor>();
  auto factor = stack.take<double>();
  Checker check(op, x);
  QueryTransformationParams p = checked(op, check, x, scale, factor);
  p.shift = check("shift", shift, {p.width});
  Laid laid;
  p.x = laid(x);
  if (to) {
    check.fits("to", *to, rows_by(x, p.width));
    p.to = laid(*to);
  }
  Tensor y = empty(x, rows_by(x, p.width), x.scalar_type());
  if (p.rows) launch(x, p, y.mutable_data_ptr());
  return y;
}

void bwd_on_cpu(const Tensor&, const QueryTransformationParams& p, const QueryTransformationGrads& g) {
  cpu::query_transformation_bwd(p, g);
}

#ifdef USE_CUDA
void bwd_on_cuda(const Tensor& x, const QueryTransformationParams& p, const QueryTransformationGrads& g) {
  Tensor workspace = empty(x, {cuda::query_transformation_bwd_workspace(p, g)}, ScalarType::Byte);
  on_current_stream("query_transformation (backward)", x, [&](void* stream) {
    return cuda::query_transformation_bwd(p, g, workspace.mutable_data_ptr(), stream);
  });
}
#endif

// Gradients of x, scale and shift, empty if not asked for.
template <void (*launch)(const Tensor& x, const QueryTransformationParams& p, const QueryTransformationGrads& g)>
std::tuple<Tensor, Tensor, Tensor> bwd(Stack& stack) {
  const char* op = "query_transformation (backward)";
  auto dout = stack.take<Tensor>(), x = stack.take<Tensor>(), scale = stack.take<Tensor>();
  auto needs = stack.take<int64_t>(), narrow = stack.take<int64_t>();
  auto factor = stack.take<double>();
  Checker check(op, x);
  QueryTransformationParams p = checked(op, check, x, scale, factor);
  check.fits("dout", dout, rows_by(x, p.width));
  Laid laid;
  p.x = laid(x);
  QueryTransformationGrads g = {};
  g.dout = laid(dout);
  WantedGrads wanted(x, needs, narrow, !p.rows);
  g.narrow = wanted.narrow();
  std::tuple<Tensor, Tensor, Tensor> grads{wanted.activation(0, x, g.dx), wanted.parameter(1, scale, g.dscale),
                                           wanted.parameter(2, scale, g.dshift)};
  if (p.rows && (g.dx || g.dscale || g.dshift)) launch(x, p, g);
  wanted.round();
  return grads;
}

}  // namespace
}  // namespace petx

STABLE_TORCH_LIBRARY_FRAGMENT(petx, m) {
  m.def("query_transformation_fwd(Tensor x, Tensor scale, Tensor shift, Tensor? to, float factor) -> Tensor");
  m.def(
      "query_transformation_bwd(Tensor dout, Tensor x, Tensor scale, int needs, int narrow, float factor) -> "
      "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(petx, CPU, m) {
  m.impl("query_transformation_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cpu>>);
  m.impl("query_transformation_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cpu>>);
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(petx, CUDA, m) {
  m.impl("query_transformation_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cuda>>);
  m.impl("query_transformation_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cuda>>);
}
#endif
