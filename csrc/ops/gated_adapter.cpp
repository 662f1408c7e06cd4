// petx::gated_adapter_fwd / _bwd: schema, checks, allocation, launch.

#include "kernels/gated_adapter.h"

#include "ops/arguments.h"
#ifdef USE_CUDA
#include "ops/cuda.h"
#endif

namespace petx {
namespace {

// The arguments that forward and backward share.
#define SITE_TENSORS(X)               \
  X(Tensor, h)                        \
  X(OptionalTensor, x)                \
  X(Tensor, down_weight)              \
  X(OptionalTensor, down_bias)        \
  X(Tensor, up_weight)                \
  X(OptionalTensor, up_bias)          \
  X(OptionalTensor, gate_down_weight) \
  X(OptionalTensor, gate_down_bias)   \
  X(OptionalTensor, gate_weight)      \
  X(OptionalTensor, gate_bias)        \
  X(OptionalTensor, norm_weight)      \
  X(OptionalTensor, norm_bias)        \
  X(OptionalTensor, skip) X(OptionalTensor, mask) X(OptionalTensor, seed)
#define SITE_OPTIONS(X)   \
  X(int64_t, granularity) \
  X(int64_t, heads)       \
  X(int64_t, activation)  \
  X(int64_t, gate_input)  \
  X(int64_t, middle_y)    \
  X(int64_t, placement)   \
  X(int64_t, norm) X(bool, residual) X(double, scale) X(double, dropout) X(double, eps)
// What the forward saved.
#define SITE_SAVED(X) \
  X(Tensor, z)        \
  X(Tensor, gate_z) X(Tensor, token_gate) X(Tensor, norm_stats) X(Tensor, up_product) X(Tensor, gate_product)
PETX_ARGUMENTS(SiteTensors, SITE_TENSORS)
PETX_ARGUMENTS(SiteOptions, SITE_OPTIONS)
PETX_ARGUMENTS(SiteSaved, SITE_SAVED)

// What the residual stream is kept in.
ScalarType stream_type(const SiteTensors& t) { return t.skip ? compute_type(t.h) : t.h.scalar_type(); }

GatedAdapterParams checked(const char* op, const SiteTensors& t, const SiteOptions& o) {
  GatedAdapterParams p = {};
  p.dtype = kernel_dtype(op, "h", t.h);
  p.granularity = option<Granularity>(op, "granularity", o.granularity, 5);
  p.activation = option<Activation>(op, "activation", o.activation, 2);
  p.gate_input = option<GateInput>(op, "gate_input", o.gate_input, 2);
  p.middle_y = option<MiddleY>(op, "middle_y", o.middle_y, 2);
  p.placement = option<Placement>(op, "placement", o.placement, 2);
  p.norm = option<Norm>(op, "norm", o.norm, 3);
  p.heads = o.heads, p.residual = o.residual;
  p.scale = o.scale, p.dropout = o.dropout, p.eps = o.eps;
  p.rows = rows_of(op, "h", t.h), p.length = length_of(op, "h", t.h), p.d = t.h.sizes().back();

  if (!(p.dropout >= 0 && p.dropout < 1)) fail(op, "dropout must be in [0, 1), got ", p.dropout);
  bool token_gate = p.granularity == Granularity::middle_x || p.granularity == Granularity::small;
  bool large = p.granularity == Granularity::large;
  if (!t.x && (p.reads_x_in_down() || large || token_gate || p.residual))
    fail(op, "x is required by this granularity, placement or residual, got None");
  if (t.x && t.x->dim() < 1) fail(op, "x must be [..., d_x], got []");
  p.d_x = t.x ? t.x->sizes().back() : p.d;
  if (p.d_x != p.d && (p.residual || token_gate)) fail(op, "x must have h's width ", p.d, " here, got ", p.d_x);
  p.r = t.down_weight.dim() == 2 ? t.down_weight.sizes()[0] : 0;
  if (p.r < 1) fail(op, "down_weight must be [r, width] with r >= 1, got ", shape_text(t.down_weight));
  if (p.heads < 1 || p.r % p.heads || p.d % p.heads)
    fail(op, "heads must divide r and d, got heads ", p.heads, ", r ", p.r, ", d ", p.d);
  if (large && t.gate_down_weight && t.gate_down_weight->dim() == 2) p.r_g = t.gate_down_weight->sizes()[0];

  Checker check(op, t.h);
  p.h = check("h", t.h, rows_by(t.h, p.d));
  p.x = check("x", t.x, rows_by(t.h, p.d_x));
  p.down_weight = check("down_weight", t.down_weight, {p.r, p.down_width()});
  p.down_bias = check("down_bias", t.down_bias, {p.r});
  p.up_weight = check("up_weight", t.up_weight, {p.d, p.r / p.heads});
  p.up_bias = check("up_bias", t.up_bias, {p.d});
  if (large) {
    if (t.gate_down_weight && p.r_g < 1)
      fail(op, "gate_down_weight must be [r_g, d_x] with r_g >= 1, got ", shape_text(*t.gate_down_weight));
    p.gate_down_weight = check.required("gate_down_weight", t.gate_down_weight, {p.r_g, p.d_x});
    p.gate_down_bias = check("gate_down_bias", t.gate_down_bias, {p.r_g});
    p.gate_weight = check.required("gate_weight", t.gate_weight, {p.d, p.r_g});
    p.gate_bias = check("gate_bias", t.gate_bias, {p.d});
  } else {
    check.unused("gate_down_weight", t.gate_down_weight, "with this granularity");
    check.unused("gate_down_bias", t.gate_down_bias, "with this granularity");
    if (token_gate) {
      int64_t width = p.granularity == Granularity::small ? 2 * p.d : p.d;
      p.gate_weight = check.required("gate_weight", t.gate_weight, {1, width});
      p.gate_bias = check("gate_bias", t.gate_bias, {1});
    } else {
      if (p.granularity == Granularity::middle_y) {
        p.gate_weight = check.required("gate_weight", t.gate_weight, {p.d});
      } else {
        check.unused("gate_weight", t.gate_weight, "with granularity none");
      }
      check.unused("gate_bias", t.gate_bias, "with this granularity");
    }
  }
  if (p.norm == Norm::none) check.unused("norm_weight", t.norm_weight, "without a norm");
  if (p.norm != Norm::layer) check.unused("norm_bias", t.norm_bias, "without a layer norm");
  if (p.norm != Norm::none && !t.norm_weight) check.required("norm_weight", t.norm_weight, {p.d});
  // The residual stream and what follows it: of h's type, or with skip of the compute type.
  ScalarType stream = stream_type(t);
  if (t.skip && p.residual) fail(op, "skip takes the place of x in the residual connection; got residual True");
  p.norm_weight = check.of_type("norm_weight", t.norm_weight, {p.d}, stream);
  p.norm_bias = check.of_type("norm_bias", t.norm_bias, {p.d}, stream);
  p.skip = check.of_type("skip", t.skip, rows_by(t.h, p.d), stream);
  p.mask = static_cast<const bool*>(check.of_type("mask", t.mask, {p.rows}, ScalarType::Bool));
  if (p.dropout > 0 && !t.seed) fail(op, "seed must be an int64 tensor of one element where dropout > 0, got None");
  p.seed = static_cast<const int64_t*>(check.of_type("seed", t.seed, {1}, ScalarType::Long));
  return p;
}

// out, z, gate_z, token_gate, norm_stats, up_product, gate_product
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// What is kept of width d: rows of `up_product` and `gate_product`.
struct KeptRows {
  int64_t up, gate;
  KeptRows(const GatedAdapterParams& p, bool keep)
      : up(keep ? p.rows : 0), gate(keep && p.granularity == Granularity::large ? p.rows : 0) {}
};

// Whether a product's type is the tensors', so that it can be kept as it is.
bool keeps_products(const Tensor& h) {
  bool whole = h.scalar_type() == ScalarType::Float || h.scalar_type() == ScalarType::Double;
  return whole && h.is_cpu();
}

void fwd_on_cpu(const Tensor&, const GatedAdapterParams& p, void* out) { cpu::gated_adapter_fwd(p, out); }

#ifdef USE_CUDA
void fwd_on_cuda(const Tensor& h, const GatedAdapterParams& p, void* out) {
  Tensor workspace = empty(h, {cuda::gated_adapter_fwd_workspace(p)}, ScalarType::Byte);
  on_current_stream("gated_adapter", h, [&](void* stream) {
    return cuda::gated_adapter_fwd(p, out, workspace.mutable_data_ptr(), stream);
  });
}
#endif

template <void (*launch)(const Tensor& h, const GatedAdapterParams& p, void* out)>
Outputs fwd(Stack& stack) {
  const char* op = "gated_adapter";
  auto t = SiteTensors::take(stack);
  auto o = SiteOptions::take(stack);
  bool keep = stack.take<bool>();
  GatedAdapterParams p = checked(op, t, o);
  if (keep && !keeps_products(t.h)) fail(op, "keep is for float32 and float64 on a CPU");
  bool token_gate = p.granularity == Granularity::middle_x || p.granularity == Granularity::small;
  auto dtype = t.h.scalar_type(), compute = compute_type(t.h);
  Tensor out = empty(t.h, rows_by(t.h, p.d), stream_type(t)), z = empty(t.h, {p.rows, p.r}, dtype);
  Tensor gate_z = empty(t.h, {p.r_g ? p.rows : 0, p.r_g}, dtype);
  Tensor token = empty(t.h, {token_gate ? p.rows : 0}, compute);
  Tensor stats = empty(t.h, {p.norm == Norm::none ? 0 : p.rows, 2}, compute);
  KeptRows kept(p, keep);
  Tensor up = empty(t.h, {kept.up, p.d}, dtype), gate = empty(t.h, {kept.gate, p.d}, dtype);
  p.z = z.mutable_data_ptr(), p.gate_z = gate_z.mutable_data_ptr();
  p.token_gate = token.mutable_data_ptr(), p.norm_stats = stats.mutable_data_ptr();
  if (kept.up) p.up_product = up.mutable_data_ptr();
  if (kept.gate) p.gate_product = gate.mutable_data_ptr();
  launch(t.h, p, out.mutable_data_ptr());
  return {out, z, gate_z, token, stats, up, gate};
}

// Gradients of h, x, the ten parameters and skip; empty if not asked for.
using Grads =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

void bwd_on_cpu(const Tensor&, const GatedAdapterParams& p, const GatedAdapterGrads& g) {
  cpu::gated_adapter_bwd(p, g);
}

#ifdef USE_CUDA
void bwd_on_cuda(const Tensor& h, const GatedAdapterParams& p, const GatedAdapterGrads& g) {
  Tensor workspace = empty(h, {cuda::gated_adapter_bwd_workspace(p, g)}, ScalarType::Byte);
  on_current_stream("gated_adapter (backward)", h,
                    [&](void* stream) { return cuda::gated_adapter_bwd(p, g, workspace.mutable_data_ptr(), stream); });
}
#endif

template <void (*launch)(const Tensor& h, const GatedAdapterParams& p, const GatedAdapterGrads& g)>
Grads bwd(Stack& stack) {
  const char* op = "gated_adapter (backward)";
  auto dout = stack.take<Tensor>();
  auto t = SiteTensors::take(stack);
  auto saved = SiteSaved::take(stack);
  auto needs = stack.take<int64_t>(), narrow = stack.take<int64_t>();
  auto o = SiteOptions::take(stack);
  GatedAdapterParams p = checked(op, t, o);
  const Tensor& h = t.h;
  Checker check(op, h);
  auto compute = compute_type(h);
  bool token = p.granularity == Granularity::middle_x || p.granularity == Granularity::small;
  GatedAdapterGrads g = {};
  g.dout = check.of_type("dout", dout, rows_by(h, p.d), stream_type(t));
  p.z = const_cast<void*>(check("z", saved.z, {p.rows, p.r}));
  p.gate_z = const_cast<void*>(check("gate_z", saved.gate_z, {p.r_g ? p.rows : 0, p.r_g}));
  p.token_gate = const_cast<void*>(check.of_type("token_gate", saved.token_gate, {token ? p.rows : 0}, compute));
  p.norm_stats =
      const_cast<void*>(check.of_type("norm_stats", saved.norm_stats, {p.norm == Norm::none ? 0 : p.rows, 2}, compute));
  KeptRows kept(p, saved.up_product.dim() > 0 && saved.up_product.sizes()[0] > 0);
  const void* up = check("up_product", saved.up_product, {kept.up, p.d});
  const void* gate = check("gate_product", saved.gate_product, {kept.gate, p.d});
  if (kept.up && !keeps_products(h)) fail(op, "up_product is for float32 and float64 on a CPU");
  if (kept.up) p.up_product = const_cast<void*>(up);
  if (kept.gate) p.gate_product = const_cast<void*>(gate);

  // With no rows nothing is launched, so sums over rows must start as zeros.
  WantedGrads wanted(h, needs, narrow, !p.rows);
  g.narrow = wanted.narrow();
  Grads grads{wanted.activation(0, h, g.dh),
              wanted.activation(1, t.x, g.dx),
              wanted.parameter(2, t.down_weight, g.down_weight),
              wanted.parameter(3, t.down_bias, g.down_bias),
              wanted.parameter(4, t.up_weight, g.up_weight),
              wanted.parameter(5, t.up_bias, g.up_bias),
              wanted.parameter(6, t.gate_down_weight, g.gate_down_weight),
              wanted.parameter(7, t.gate_down_bias, g.gate_down_bias),
              wanted.parameter(8, t.gate_weight, g.gate_weight),
              wanted.parameter(9, t.gate_bias, g.gate_bias),
              wanted.parameter(10, t.norm_weight, g.norm_weight),
              wanted.parameter(11, t.norm_bias, g.norm_bias),
              wanted.stream(12, t.skip, g.skip)};
  launch(h, p, g);
  wanted.round();
  return grads;
}

}  // namespace
}  // namespace petx

STABLE_TORCH_LIBRARY_FRAGMENT(petx, m) {
  using namespace petx;
  m.def(schema("gated_adapter_fwd", SiteTensors::schema() + SiteOptions::schema() + "bool keep, ",
               "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
            .c_str());
  m.def(
      schema("gated_adapter_bwd",
             "Tensor dout, " + SiteTensors::schema() + SiteSaved::schema() + "int needs, int narrow, " +
                 SiteOptions::schema(),
             "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
          .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(petx, CPU, m) {
  m.impl("gated_adapter_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cpu>>);
  m.impl("gated_adapter_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cpu>>);
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(petx, CUDA, m) {
  m.impl("gated_adapter_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cuda>>);
  m.impl("gated_adapter_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cuda>>);
}
#endif
