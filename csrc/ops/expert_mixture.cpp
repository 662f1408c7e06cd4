// petx::expert_mixture_fwd / _bwd: schema, checks, allocation, launch.

#include "kernels/expert_mixture.h"

#include "ops/arguments.h"
#ifdef USE_CUDA
#include "ops/cuda.h"
#include "ops/products.h"
#endif

namespace petx {
namespace {

// The arguments that forward and backward share.
#define MIXTURE_TENSORS(X)       \
  X(Tensor, x)                   \
  X(Tensor, down_weight)         \
  X(OptionalTensor, down_bias)   \
  X(Tensor, up_weight)           \
  X(OptionalTensor, up_bias)     \
  X(OptionalTensor, gate_weight) \
  X(OptionalTensor, gate_bias) X(OptionalTensor, scope_mask) X(OptionalTensor, pool_mask)
#define MIXTURE_OPTIONS(X) \
  X(int64_t, experts) X(int64_t, gate) X(int64_t, top_k) X(int64_t, activation) X(double, alpha) X(double, beta)
PETX_ARGUMENTS(MixtureTensors, MIXTURE_TENSORS)
PETX_ARGUMENTS(MixtureOptions, MIXTURE_OPTIONS)

ExpertMixtureParams checked(const char* op, const MixtureTensors& t, const MixtureOptions& o) {
  ExpertMixtureParams p = {};
  p.dtype = kernel_dtype(op, "x", t.x);
  p.gate = option<ExpertGate>(op, "gate", o.gate, 3);
  p.activation = option<ExpertActivation>(op, "activation", o.activation, 4);
  p.rows = rows_of(op, "x", t.x), p.length = length_of(op, "x", t.x), p.d = t.x.sizes().back();
  p.experts = o.experts, p.top_k = o.top_k, p.alpha = o.alpha, p.beta = o.beta;
  p.stacked = t.down_weight.dim() == 2 ? t.down_weight.sizes()[0] : 0;
  if (p.experts < 1 || p.stacked < 1 || p.stacked % p.experts)
    fail(op, "experts must divide the rows of down_weight, got experts ", p.experts, ", down_weight ",
         shape_text(t.down_weight));
  if (p.top_k < 1 || p.top_k > p.experts) fail(op, "top_k must be in [1, ", p.experts, "], got ", p.top_k);

  Checker check(op, t.x);
  p.x = check("x", t.x, rows_by(t.x, p.d));
  p.down_weight = check("down_weight", t.down_weight, {p.stacked, p.d});
  p.down_bias = check("down_bias", t.down_bias, {p.stacked});
  p.up_weight = check("up_weight", t.up_weight, {p.d, p.stacked});
  p.up_bias = check("up_bias", t.up_bias, {p.experts, p.d});
  if (p.gated()) {
    p.gate_weight = check.required("gate_weight", t.gate_weight, {p.experts, p.d});
    p.gate_bias = check("gate_bias", t.gate_bias, {p.experts});
  } else {
    check.unused("gate_weight", t.gate_weight, "with equal gates");
    check.unused("gate_bias", t.gate_bias, "with equal gates");
  }
  p.scope = static_cast<const bool*>(check.of_type("scope_mask", t.scope_mask, {p.rows}, ScalarType::Bool));
  if (p.gate != ExpertGate::sample) check.unused("pool_mask", t.pool_mask, "with this gate");
  p.pool = static_cast<const bool*>(check.of_type("pool_mask", t.pool_mask, {p.rows}, ScalarType::Bool));
  return p;
}

std::vector<int64_t> gates_shape(const ExpertMixtureParams& p) {
  if (!p.gated() || p.empty()) return {0, p.experts};
  return {p.gate == ExpertGate::sample ? p.samples() : p.rows, p.experts};
}

using Outputs = std::tuple<Tensor, Tensor, Tensor>;  // out, u, gates

void fwd_on_cpu(const Tensor&, const ExpertMixtureParams& p, void* out) { cpu::expert_mixture_fwd(p, out); }

#ifdef USE_CUDA
void fwd_on_cuda(const Tensor& x, const ExpertMixtureParams& p, void* out) {
  Tensor workspace = empty(x, {cuda::expert_mixture_fwd_workspace(p)}, ScalarType::Byte);
  auto device = x.device();
  on_current_stream("expert_mixture", x, [&](void* stream) {
    return cuda::expert_mixture_fwd(p, out, workspace.mutable_data_ptr(), {multiply_on_device, &device}, stream);
  });
}
#endif

template <void (*launch)(const Tensor& x, const ExpertMixtureParams& p, void* out)>
Outputs fwd(Stack& stack) {
  auto t = MixtureTensors::take(stack);
  auto o = MixtureOptions::take(stack);
  ExpertMixtureParams p = checked("expert_mixture", t, o);
  const Tensor& x = t.x;
  Tensor out = empty(x, rows_by(x, p.d), x.scalar_type());
  Tensor u = empty(x, {p.empty() ? 0 : p.rows, p.stacked}, x.scalar_type());
  Tensor gates = empty(x, gates_shape(p), compute_type(x));
  p.u = u.mutable_data_ptr(), p.gates = gates.mutable_data_ptr();
  launch(x, p, out.mutable_data_ptr());
  return {out, u, gates};
}

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;  // of x and the six parameters

void bwd_on_cpu(const Tensor&, const ExpertMixtureParams& p, const ExpertMixtureGrads& g) {
  cpu::expert_mixture_bwd(p, g);
}

#ifdef USE_CUDA
void bwd_on_cuda(const Tensor& x, const ExpertMixtureParams& p, const ExpertMixtureGrads& g) {
  Tensor workspace = empty(x, {cuda::expert_mixture_bwd_workspace(p, g)}, ScalarType::Byte);
  auto device = x.device();
  on_current_stream("expert_mixture (backward)", x, [&](void* stream) {
    return cuda::expert_mixture_bwd(p, g, workspace.mutable_data_ptr(), {multiply_on_device, &device}, stream);
  });
}
#endif

template <void (*launch)(const Tensor& x, const ExpertMixtureParams& p, const ExpertMixtureGrads& g)>
Grads bwd(Stack& stack) {
  const char* op = "expert_mixture (backward)";
  auto dout = stack.take<Tensor>();
  auto t = MixtureTensors::take(stack);
  auto u = stack.take<Tensor>(), gates = stack.take<Tensor>();
  auto needs = stack.take<int64_t>(), narrow = stack.take<int64_t>();
  auto o = MixtureOptions::take(stack);
  ExpertMixtureParams p = checked(op, t, o);
  const Tensor& x = t.x;
  Checker check(op, x);
  auto compute = compute_type(x);
  ExpertMixtureGrads g = {};
  g.dout = check("dout", dout, rows_by(x, p.d));
  p.u = const_cast<void*>(check("u", u, {p.empty() ? 0 : p.rows, p.stacked}));
  p.gates = const_cast<void*>(check.of_type("gates", gates, gates_shape(p), compute));

  // With no rows, or rows of no width, nothing is launched, so sums over rows must start as zeros.
  WantedGrads wanted(x, needs, narrow, p.empty());
  g.narrow = wanted.narrow();
  Grads grads{wanted.activation(0, x, g.dx),
              wanted.parameter(1, t.down_weight, g.down_weight),
              wanted.parameter(2, t.down_bias, g.down_bias),
              wanted.parameter(3, t.up_weight, g.up_weight),
              wanted.parameter(4, t.up_bias, g.up_bias),
              wanted.parameter(5, t.gate_weight, g.gate_weight),
              wanted.parameter(6, t.gate_bias, g.gate_bias)};
  launch(x, p, g);
  wanted.round();
  return grads;
}

}  // namespace
}  // namespace petx

STABLE_TORCH_LIBRARY_FRAGMENT(petx, m) {
  using namespace petx;
  m.def(schema("expert_mixture_fwd", MixtureTensors::schema() + MixtureOptions::schema(), "(Tensor, Tensor, Tensor)")
            .c_str());
  m.def(schema("expert_mixture_bwd",
               "Tensor dout, " + MixtureTensors::schema() + "Tensor u, Tensor gates, int needs, int narrow, " +
                   MixtureOptions::schema(),
               "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
            .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(petx, CPU, m) {
  m.impl("expert_mixture_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cpu>>);
  m.impl("expert_mixture_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cpu>>);
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(petx, CUDA, m) {
  m.impl("expert_mixture_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cuda>>);
  m.impl("expert_mixture_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cuda>>);
}
#endif
