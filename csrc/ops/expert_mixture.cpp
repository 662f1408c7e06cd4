// petx::expert_mixture_fwd / _bwd: schema, checks, allocation, launch.

#include "kernels/expert_mixture.h"

#include "ops/torch.h"
#ifdef USE_CUDA
#include "ops/cuda.h"
#include "ops/products.h"
#endif

namespace petx {
namespace {

// The arguments that forward and backward share, in the schema's order.
#define PETX_MIXTURE_TENSORS                                                             \
  "Tensor x, Tensor down_weight, Tensor? down_bias, Tensor up_weight, Tensor? up_bias, " \
  "Tensor? gate_weight, Tensor? gate_bias, Tensor? scope_mask, Tensor? pool_mask"
#define PETX_MIXTURE_OPTIONS "int length, int experts, int gate, int top_k, int activation, float alpha, float beta"

struct MixtureTensors {
  Tensor x, down_weight;
  OptionalTensor down_bias;
  Tensor up_weight;
  OptionalTensor up_bias, gate_weight, gate_bias, scope_mask, pool_mask;
};

struct MixtureOptions {
  int64_t length, experts, gate, top_k, activation;
  double alpha, beta;
};

ExpertMixtureParams checked(const char* op, const MixtureTensors& t, const MixtureOptions& o) {
  ExpertMixtureParams p = {};
  p.dtype = kernel_dtype(op, "x", t.x);
  p.gate = option<ExpertGate>(op, "gate", o.gate, 3);
  p.activation = option<ExpertActivation>(op, "activation", o.activation, 4);
  p.rows = rows_of(op, "x", t.x), p.d = t.x.sizes().back();
  p.length = o.length, p.experts = o.experts, p.top_k = o.top_k, p.alpha = o.alpha, p.beta = o.beta;
  if (p.rows && (p.length < 1 || p.rows % p.length))
    fail(op, "length must divide the number of rows, got length ", p.length, ", rows ", p.rows);
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
Outputs fwd(Tensor x, Tensor down_weight, OptionalTensor down_bias, Tensor up_weight, OptionalTensor up_bias,
            OptionalTensor gate_weight, OptionalTensor gate_bias, OptionalTensor scope_mask, OptionalTensor pool_mask,
            int64_t length, int64_t experts, int64_t gate, int64_t top_k, int64_t activation, double alpha,
            double beta) {
  ExpertMixtureParams p = checked(
      "expert_mixture", {x, down_weight, down_bias, up_weight, up_bias, gate_weight, gate_bias, scope_mask, pool_mask},
      {length, experts, gate, top_k, activation, alpha, beta});
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
Grads bwd(Tensor dout, Tensor x, Tensor down_weight, OptionalTensor down_bias, Tensor up_weight, OptionalTensor up_bias,
          OptionalTensor gate_weight, OptionalTensor gate_bias, OptionalTensor scope_mask, OptionalTensor pool_mask,
          Tensor u, Tensor gates, int64_t needs, int64_t length, int64_t experts, int64_t gate, int64_t top_k,
          int64_t activation, double alpha, double beta) {
  const char* op = "expert_mixture (backward)";
  ExpertMixtureParams p =
      checked(op, {x, down_weight, down_bias, up_weight, up_bias, gate_weight, gate_bias, scope_mask, pool_mask},
              {length, experts, gate, top_k, activation, alpha, beta});
  Checker check(op, x);
  auto compute = compute_type(x);
  ExpertMixtureGrads g = {};
  g.dout = check("dout", dout, rows_by(x, p.d));
  p.u = const_cast<void*>(check("u", u, {p.empty() ? 0 : p.rows, p.stacked}));
  p.gates = const_cast<void*>(check.of_type("gates", gates, gates_shape(p), compute));

  // With no rows, or rows of no width, nothing is launched, so sums over rows must start as zeros.
  WantedGrads wanted(x, needs, p.empty());
  Grads grads{wanted(0, x, x.scalar_type(), g.dx),        wanted(1, down_weight, compute, g.down_weight),
              wanted(2, down_bias, compute, g.down_bias), wanted(3, up_weight, compute, g.up_weight),
              wanted(4, up_bias, compute, g.up_bias),     wanted(5, gate_weight, compute, g.gate_weight),
              wanted(6, gate_bias, compute, g.gate_bias)};
  launch(x, p, g);
  return grads;
}

}  // namespace
}  // namespace petx

STABLE_TORCH_LIBRARY_FRAGMENT(petx, m) {
  m.def("expert_mixture_fwd(" PETX_MIXTURE_TENSORS ", " PETX_MIXTURE_OPTIONS ") -> (Tensor, Tensor, Tensor)");
  m.def("expert_mixture_bwd(Tensor dout, " PETX_MIXTURE_TENSORS
        ", Tensor u, Tensor gates, int needs, " PETX_MIXTURE_OPTIONS
        ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(petx, CPU, m) {
  m.impl("expert_mixture_fwd", TORCH_BOX(&petx::fwd<petx::fwd_on_cpu>));
  m.impl("expert_mixture_bwd", TORCH_BOX(&petx::bwd<petx::bwd_on_cpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(petx, CUDA, m) {
  m.impl("expert_mixture_fwd", TORCH_BOX(&petx::fwd<petx::fwd_on_cuda>));
  m.impl("expert_mixture_bwd", TORCH_BOX(&petx::bwd<petx::bwd_on_cuda>));
}
#endif
