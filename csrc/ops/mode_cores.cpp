// petx::mode_cores_fwd / _bwd: schema, checks, allocation, launch.

#include "kernels/mode_cores.h"

#include "ops/arguments.h"
#ifdef USE_CUDA
#include "ops/cuda.h"
#endif

namespace petx {
namespace {

// The arguments that forward and backward share.
#define CORES_TENSORS(X) X(Tensor, core) X(Tensor, modes) X(OptionalTensor, threshold)
#define CORES_OPTIONS(X) X(int64_t, gate) X(double, temperature)
PETX_ARGUMENTS(CoresTensors, CORES_TENSORS)
PETX_ARGUMENTS(CoresOptions, CORES_OPTIONS)

ModeCoresParams checked(const char* op, const Checker& check, const CoresTensors& t, const CoresOptions& o) {
  const auto& [core, modes, threshold] = t;
  ModeCoresParams p = {};
  p.dtype = kernel_dtype(op, "core", core);
  if ((core.dim() != 1 && core.dim() != 3) || core.sizes()[0] < 1)
    fail(op, "core must be [R, R, R] or [R], got ", shape_text(core));
  if (modes.dim() != 2) fail(op, "modes must be [n, R], got ", shape_text(modes));
  p.diagonal = core.dim() == 1;
  p.rank = core.sizes()[0], p.modes = modes.sizes()[0];
  p.core = check("core", core, p.diagonal ? std::vector<int64_t>{p.rank} : std::vector<int64_t>(3, p.rank));
  p.vectors = check("modes", modes, {p.modes, p.rank});
  p.gate = option<Gate>(op, "gate", o.gate, 4);
  if (!(o.temperature > 0)) fail(op, "temperature must be positive, got ", o.temperature);
  p.temperature = o.temperature;
  if (p.gate == Gate::none) {
    check.unused("threshold", threshold, "without a gate");
    return p;
  }
  p.threshold = check.required("threshold", threshold, {-1});
  int64_t count = threshold->sizes()[0];
  if (count != 1 && count != p.rank) fail(op, "threshold must be [1] or [", p.rank, "], got [", count, "]");
  p.each = count > 1;
  return p;
}

void fwd_on_cpu(const Tensor&, const ModeCoresParams& p, void* cores) { cpu::mode_cores_fwd(p, cores); }

#ifdef USE_CUDA
void fwd_on_cuda(const Tensor& core, const ModeCoresParams& p, void* cores) {
  on_current_stream("mode_cores", core, [&](void* stream) { return cuda::mode_cores_fwd(p, cores, stream); });
}
#endif

template <void (*launch)(const Tensor& core, const ModeCoresParams& p, void* cores)>
Tensor fwd(Stack& stack) {
  const char* op = "mode_cores";
  auto t = CoresTensors::take(stack);
  auto o = CoresOptions::take(stack);
  const Tensor& core = t.core;
  ModeCoresParams p = checked(op, Checker(op, core), t, o);
  std::vector<int64_t> shape = {p.modes, p.rank};
  if (!p.diagonal) shape.push_back(p.rank);
  Tensor cores = empty(core, shape, core.scalar_type());
  if (p.modes) launch(core, p, cores.mutable_data_ptr());
  return cores;
}

void bwd_on_cpu(const Tensor&, const ModeCoresParams& p, const ModeCoresGrads& g) { cpu::mode_cores_bwd(p, g); }

#ifdef USE_CUDA
void bwd_on_cuda(const Tensor& core, const ModeCoresParams& p, const ModeCoresGrads& g) {
  Tensor workspace = empty(core, {cuda::mode_cores_bwd_workspace(p, g)}, ScalarType::Byte);
  on_current_stream("mode_cores (backward)", core,
                    [&](void* stream) { return cuda::mode_cores_bwd(p, g, workspace.mutable_data_ptr(), stream); });
}
#endif

// Gradients of core, modes and threshold, empty if not asked for.
template <void (*launch)(const Tensor& core, const ModeCoresParams& p, const ModeCoresGrads& g)>
std::tuple<Tensor, Tensor, Tensor> bwd(Stack& stack) {
  const char* op = "mode_cores (backward)";
  auto dcores = stack.take<Tensor>();
  auto t = CoresTensors::take(stack);
  auto needs = stack.take<int64_t>(), narrow = stack.take<int64_t>();
  auto o = CoresOptions::take(stack);
  const auto& [core, modes, threshold] = t;
  Checker check(op, core);
  ModeCoresParams p = checked(op, check, t, o);
  ModeCoresGrads g = {};
  std::vector<int64_t> shape = {p.modes, p.rank};
  if (!p.diagonal) shape.push_back(p.rank);
  g.dcores = check("dcores", dcores, shape);
  WantedGrads wanted(core, needs, narrow, !p.modes);
  g.narrow = wanted.narrow();
  std::tuple<Tensor, Tensor, Tensor> grads{wanted.parameter(0, core, g.dcore), wanted.parameter(1, modes, g.dvectors),
                                           wanted.parameter(2, threshold, g.dthreshold)};
  if (p.modes && (g.dcore || g.dvectors || g.dthreshold)) launch(core, p, g);
  wanted.round();
  return grads;
}

}  // namespace
}  // namespace petx

STABLE_TORCH_LIBRARY_FRAGMENT(petx, m) {
  using namespace petx;
  m.def(schema("mode_cores_fwd", CoresTensors::schema() + CoresOptions::schema(), "Tensor").c_str());
  m.def(schema("mode_cores_bwd",
               "Tensor dcores, " + CoresTensors::schema() + "int needs, int narrow, " + CoresOptions::schema(),
               "(Tensor, Tensor, Tensor)")
            .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(petx, CPU, m) {
  m.impl("mode_cores_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cpu>>);
  m.impl("mode_cores_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cpu>>);
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(petx, CUDA, m) {
  m.impl("mode_cores_fwd", &petx::boxed<petx::fwd<petx::fwd_on_cuda>>);
  m.impl("mode_cores_bwd", &petx::boxed<petx::bwd<petx::bwd_on_cuda>>);
}
#endif
