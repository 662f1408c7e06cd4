// petx::mode_update_fwd / _bwd: schema, checks, allocation, launch.

#include "kernels/mode_update.h"

#include "ops/arguments.h"
#ifdef USE_CUDA
#include "ops/cuda.h"
#endif

namespace petx {
namespace {

// The arguments that forward and backward share.
#define UPDATE_FACTORS(X) X(Tensor, x) X(OptionalTensor, u) X(Tensor, v) X(Tensor, cores)
#define UPDATE_OPTIONS(X) X(double, dropout) X(bool, shared_mask)
PETX_ARGUMENTS(Factors, UPDATE_FACTORS)
PETX_ARGUMENTS(Options, UPDATE_OPTIONS)

ModeUpdateParams checked(const char* op, const Checker& check, const Factors& f, const OptionalTensor& seed,
                         const Options& o) {
  ModeUpdateParams p = {};
  p.dtype = kernel_dtype(op, "x", f.x);
  p.rows = rows_of(op, "x", f.x);
  if (f.cores.dim() != 2 && f.cores.dim() != 3)
    fail(op, "cores must be [K, R, R] or [K, R], got ", shape_text(f.cores));
  p.diagonal = f.cores.dim() == 2, p.shared_mask = o.shared_mask, p.dropout = o.dropout;
  p.count = f.cores.sizes()[0], p.rank = f.cores.sizes()[1];
  if (p.count < 1 || p.count > kMostModes || p.rank < 1)
    fail(op, "cores must be [K, R, R] or [K, R] with K from 1 to 4, got ", shape_text(f.cores));
  if (f.v.dim() != 2) fail(op, "v must be [d_out, R], got ", shape_text(f.v));
  p.d_in = f.x.sizes().back(), p.d_out = f.v.sizes()[0];

  const void* x = check("x", f.x, rows_by(f.x, f.u ? p.d_in : p.rank));
  p.u = check("u", f.u, {p.rank, p.d_in});
  if (p.d_in < 1) fail(op, "x must be [..., d_in] with d_in of at least 1, got ", shape_text(f.x));
  p.v = check("v", f.v, {p.d_out, p.rank});
  p.cores = check("cores", f.cores,
                  p.diagonal ? std::vector<int64_t>{p.count, p.rank} : std::vector<int64_t>{p.count, p.rank, p.rank});
  p.x = f.u ? x : nullptr;
  p.h = f.u ? nullptr : const_cast<void*>(x);
  if (!(o.dropout >= 0 && o.dropout < 1)) fail(op, "dropout must be in [0, 1), got ", o.dropout);
  if (o.dropout > 0 && !seed) fail(op, "seed must be an int64 tensor of one element where dropout > 0, got None");
  p.seed = static_cast<const int64_t*>(check.of_type("seed", seed, {1}, ScalarType::Long));
  return p;
}

void fwd_on_cpu(const Tensor&, const ModeUpdateParams& p, const ModeUpdateOutputs& out) {
  cpu::mode_update_fwd(p, out);
}

#ifdef USE_CUDA
void fwd_on_cuda(const Tensor& x, const ModeUpdateParams& p, const ModeUpdateOutputs& out) {
  Tensor workspace = empty(x, {cuda::mode_update_fwd_workspace(p)}, ScalarType::Byte);
  on_current_stream("mode_update", x,
                    [&](void* stream) { return cuda::mode_update_fwd(p, out, workspace.mutable_data_ptr(), stream); });
}
#endif

// h [N, R], empty if x comes projected, then the K results.
template <void (*launch)(const Tensor& x, const ModeUpdateParams& p, const ModeUpdateOutputs& out)>
Tensors fwd(Stack& stack) {
  const char* op = "mode_update";
  auto f = Factors::take(stack);
  auto bases = stack.take<Tensors>();
  auto seed = stack.take<OptionalTensor>();
  auto o = Options::take(stack);
  const auto& [x, u, v, cores] = f;
  Checker check(op, x);
  ModeUpdateParams p = checked(op, check, f, seed, o);
  if (!bases.empty() && static_cast<int64_t>(bases.size()) != p.count)
    fail(op, "bases must be ", p.count, " tensors, one for each core, got ", bases.size());
  ModeUpdateOutputs out = {};
  std::vector<Tensor> results;
  results.reserve(p.count + 1);
  std::vector<int64_t> shape = rows_by(x, p.d_out);
  results.push_back(empty(x, {u ? p.rows : 0, p.rank}, x.scalar_type()));
  if (u) p.h = results[0].mutable_data_ptr();
  for (int64_t k = 0; k < p.count; ++k) {
    static constexpr const char* names[] = {"bases[0]", "bases[1]", "bases[2]", "bases[3]"};
    if (!bases.empty()) {
      int64_t stride = 0;
      out.base[k] = check.rows(names[k], bases[k], shape, stride);
      if (k && stride != out.base_stride && p.rows > 1)
        fail(op, names[k], " must have its rows ", out.base_stride, " values apart like bases[0], got ", stride);
      out.base_stride = stride;
    }
    results.push_back(empty(x, shape, x.scalar_type()));
    out.y[k] = results.back().mutable_data_ptr();
  }
  if (p.rows && p.d_out) launch(x, p, out);
  return results;
}

void bwd_on_cpu(const Tensor&, const ModeUpdateParams& p, const ModeUpdateGrads& g) { cpu::mode_update_bwd(p, g); }

#ifdef USE_CUDA
void bwd_on_cuda(const Tensor& x, const ModeUpdateParams& p, const ModeUpdateGrads& g) {
  Tensor workspace = empty(x, {cuda::mode_update_bwd_workspace(p, g)}, ScalarType::Byte);
  on_current_stream("mode_update (backward)", x,
                    [&](void* stream) { return cuda::mode_update_bwd(p, g, workspace.mutable_data_ptr(), stream); });
}
#endif

// Gradients of x, u, v and the cores, empty if not asked for. `used` has a bit for each projection whose gradient
// is among `douts`, in their order.
template <void (*launch)(const Tensor& x, const ModeUpdateParams& p, const ModeUpdateGrads& g)>
std::tuple<Tensor, Tensor, Tensor, Tensor> bwd(Stack& stack) {
  const char* op = "mode_update (backward)";
  auto douts = stack.take<Tensors>();
  auto used = stack.take<int64_t>();
  auto f = Factors::take(stack);
  auto seed = stack.take<OptionalTensor>();
  auto h = stack.take<Tensor>();
  auto needs = stack.take<int64_t>(), narrow = stack.take<int64_t>();
  auto o = Options::take(stack);
  const auto& [x, u, v, cores] = f;
  Checker check(op, x);
  ModeUpdateParams p = checked(op, check, f, seed, o);
  if (u) p.h = const_cast<void*>(check("h", h, {p.rows, p.rank}));
  ModeUpdateGrads g = {};
  size_t given = 0;
  for (int64_t k = 0; k < p.count; ++k) {
    if (!(used >> k & 1)) continue;
    if (given == douts.size()) fail(op, "douts has fewer tensors than `used` names");
    g.dy[k] = check("douts", douts[given++], rows_by(x, p.d_out));
  }

  bool nothing = !p.rows || !p.d_out || !given;  // is launched then, and the sums are zeros
  bool partly = static_cast<int64_t>(given) < p.count;
  WantedGrads wanted(x, needs, narrow, nothing);
  g.narrow = wanted.narrow();
  std::tuple<Tensor, Tensor, Tensor, Tensor> grads{wanted.activation(0, x, g.dx), wanted.parameter(1, u, g.du),
                                                   wanted.parameter(2, v, g.dv),
                                                   wanted.parameter(3, cores, g.dcores, partly)};
  if (!nothing && (g.dx || g.du || g.dv || g.dcores)) launch(x, p, g);
  wanted.round();
  return grads;
}

}  // namespace
}  // namespace petx

STABLE_TORCH_LIBRARY_FRAGMENT(petx, m) {
  using namespace petx;
  m.def(schema("mode_update_fwd", Factors::schema() + "Tensor[] bases, Tensor? seed, " + Options::schema(), "Tensor[]")
            .c_str());
  m.def(schema("mode_update_bwd",
               "Tensor[] douts, int used, " + Factors::schema() + "Tensor? seed, Tensor h, int needs, int narrow, " +
                   Options::schema(),
               "(Tensor, Tensor, Tensor, Tensor)")
            .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(petx, CPU, m) {
  m.impl("mode_update_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cpu>>);
  m.impl("mode_update_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cpu>>);
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(petx, CUDA, m) {
  m.impl("mode_update_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cuda>>);
  m.impl("mode_update_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cuda>>);
}
#endif
