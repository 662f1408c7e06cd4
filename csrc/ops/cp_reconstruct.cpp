// petx::cp_reconstruct_fwd / _bwd: schema, checks, allocation, launch.

#include "kernels/cp_reconstruct.h"

#include "ops/arguments.h"
#ifdef USE_CUDA
#include "ops/cuda.h"
#endif

namespace petx {
namespace {

// The arguments that forward and backward share.
#define RECONSTRUCT_FACTORS(X) X(Tensor, u) X(Tensor, v) X(Tensor, cores) X(OptionalTensor, threshold)
#define RECONSTRUCT_OPTIONS(X) X(int64_t, gate) X(double, temperature) X(double, scale)
PETX_ARGUMENTS(Factors, RECONSTRUCT_FACTORS)
PETX_ARGUMENTS(Options, RECONSTRUCT_OPTIONS)

// `matrices` are the weights or the gradients of the results.
CpReconstructParams checked(const char* op, const char* name, const std::vector<Tensor>& matrices, const Factors& f,
                            const Options& o, std::vector<const void*>& pointers) {
  CpReconstructParams p = {};
  if (matrices.empty()) fail(op, name, " must be at least one tensor [d_out, d_in], got none");
  const Tensor& first = matrices[0];
  if (first.dim() != 2) fail(op, name, "[0] must be [d_out, d_in], got ", shape_text(first));
  p.dtype = kernel_dtype(op, name, first);
  p.modules = matrices.size();
  p.d_out = first.sizes()[0], p.d_in = first.sizes()[1];
  Checker check(op, first);
  for (size_t k = 0; k < matrices.size(); ++k)
    pointers.push_back(
        check((std::string(name) + "[" + std::to_string(k) + "]").c_str(), matrices[k], {p.d_out, p.d_in}));

  if (f.cores.dim() != 2 && f.cores.dim() != 3)
    fail(op, "cores must be [K, R, R] or [K, R], got ", shape_text(f.cores));
  p.diagonal = f.cores.dim() == 2;
  p.rank = f.cores.sizes()[1];
  if (p.rank < 1) fail(op, "cores must have a rank of at least 1, got ", shape_text(f.cores));
  std::vector<int64_t> core_shape = {p.modules, p.rank};
  if (!p.diagonal) core_shape.push_back(p.rank);
  p.cores = check("cores", f.cores, core_shape);
  p.u = check("u", f.u, {p.rank, p.d_in});
  p.v = check("v", f.v, {p.d_out, p.rank});

  p.gate = option<Gate>(op, "gate", o.gate, 4);
  if (!(o.temperature > 0)) fail(op, "temperature must be positive, got ", o.temperature);
  p.temperature = o.temperature, p.scale = o.scale;
  if (p.gate == Gate::none) {
    check.unused("threshold", f.threshold, "without a gate");
  } else {
    p.threshold = check.required("threshold", f.threshold, {-1});
    p.thresholds = f.threshold->sizes()[0];
    if (p.thresholds != 1 && p.thresholds != p.modules)
      fail(op, "threshold must be [1] or [", p.modules, "], got ", shape_text(*f.threshold));
  }
  return p;
}

// Shape of the sides, none unless they are kept.
std::vector<int64_t> sides_shape(const CpReconstructParams& p, bool keep) {
  return {keep ? p.modules : 0, p.d_out, (p.d_in + kSides - 1) / kSides};
}

bool has_sides(const CpReconstructParams& p, const Tensor& like) {
  return (p.gate == Gate::soft || p.gate == Gate::hard) && like.is_cpu();
}

void fwd_on_cpu(const Tensor&, const CpReconstructParams& p, const void* const* weights, void* const* out) {
  cpu::cp_reconstruct_fwd(p, weights, out);
}

#ifdef USE_CUDA
void fwd_on_cuda(const Tensor& like, const CpReconstructParams& p, const void* const* weights, void* const* out) {
  Tensor workspace = empty(like, {cuda::cp_reconstruct_fwd_workspace(p)}, ScalarType::Byte);
  on_current_stream("cp_reconstruct", like, [&](void* stream) {
    return cuda::cp_reconstruct_fwd(p, weights, out, workspace.mutable_data_ptr(), stream);
  });
}
#endif

template <void (*launch)(const Tensor& like, const CpReconstructParams& p, const void* const* weights,
                         void* const* out)>
Tensors fwd(Stack& stack) {
  auto weights = stack.take<Tensors>();
  auto f = Factors::take(stack);
  auto o = Options::take(stack);
  bool keep = stack.take<bool>();
  const char* op = "cp_reconstruct";
  std::vector<const void*> in;
  CpReconstructParams p = checked(op, "weights", weights, f, o, in);
  if (keep && !has_sides(p, weights[0])) fail(op, "keep is for the soft and the hard gate on a CPU");
  std::vector<Tensor> results{empty(weights[0], sides_shape(p, keep), ScalarType::Byte)};
  if (keep) p.sides = static_cast<uint8_t*>(results[0].mutable_data_ptr());
  std::vector<void*> out;
  for (const Tensor& weight : weights) {
    results.push_back(empty(weight, {p.d_out, p.d_in}, weight.scalar_type()));
    out.push_back(results.back().mutable_data_ptr());
  }
  if (p.d_out && p.d_in) launch(f.u, p, in.data(), out.data());
  return results;
}

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of u, v, cores, threshold; empty if not asked for

void bwd_on_cpu(const Tensor&, const CpReconstructParams& p, const void* const* dout, const CpReconstructGrads& g) {
  cpu::cp_reconstruct_bwd(p, dout, g);
}

#ifdef USE_CUDA
void bwd_on_cuda(const Tensor& like, const CpReconstructParams& p, const void* const* dout,
                 const CpReconstructGrads& g) {
  Tensor workspace = empty(like, {cuda::cp_reconstruct_bwd_workspace(p, g)}, ScalarType::Byte);
  on_current_stream("cp_reconstruct (backward)", like, [&](void* stream) {
    return cuda::cp_reconstruct_bwd(p, dout, g, workspace.mutable_data_ptr(), stream);
  });
}
#endif

template <void (*launch)(const Tensor& like, const CpReconstructParams& p, const void* const* dout,
                         const CpReconstructGrads& g)>
Grads bwd(Stack& stack) {
  const char* op = "cp_reconstruct (backward)";
  auto dout = stack.take<Tensors>();
  auto f = Factors::take(stack);
  auto sides = stack.take<Tensor>();
  auto needs = stack.take<int64_t>(), narrow = stack.take<int64_t>();
  auto o = Options::take(stack);
  const auto& [u, v, cores, threshold] = f;
  std::vector<const void*> in;
  CpReconstructParams p = checked(op, "dout", dout, f, o, in);
  bool kept = sides.dim() > 0 && sides.sizes()[0] > 0;
  const void* bits = Checker(op, dout[0]).of_type("sides", sides, sides_shape(p, kept), ScalarType::Byte);
  if (kept && !has_sides(p, dout[0])) fail(op, "sides are for the soft and the hard gate on a CPU");
  if (kept) p.sides = static_cast<uint8_t*>(const_cast<void*>(bits));
  bool any = p.d_out && p.d_in;  // with no values nothing is launched, so the sums must start as zeros
  CpReconstructGrads g = {};
  WantedGrads wanted(u, needs, narrow, !any);
  g.narrow = wanted.narrow();
  Grads grads{wanted.parameter(0, u, g.u), wanted.parameter(1, v, g.v), wanted.parameter(2, cores, g.cores),
              wanted.parameter(3, threshold, g.threshold)};
  if (any) launch(u, p, in.data(), g);
  wanted.round();
  return grads;
}

}  // namespace
}  // namespace petx

STABLE_TORCH_LIBRARY_FRAGMENT(petx, m) {
  using namespace petx;
  m.def(schema("cp_reconstruct_fwd", "Tensor[] weights, " + Factors::schema() + Options::schema() + "bool keep, ",
               "Tensor[]")
            .c_str());
  m.def(schema("cp_reconstruct_bwd",
               "Tensor[] dout, " + Factors::schema() + "Tensor sides, int needs, int narrow, " + Options::schema(),
               "(Tensor, Tensor, Tensor, Tensor)")
            .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(petx, CPU, m) {
  m.impl("cp_reconstruct_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cpu>>);
  m.impl("cp_reconstruct_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cpu>>);
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(petx, CUDA, m) {
  m.impl("cp_reconstruct_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cuda>>);
  m.impl("cp_reconstruct_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cuda>>);
}
#endif
