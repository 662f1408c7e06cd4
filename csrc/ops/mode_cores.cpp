// petx::mode_cores_fwd / _bwd: schema, checks, allocation, launch.

#include "kernels/mode_cores.h"

#include "ops/torch.h"
#ifdef USE_CUDA
#include "ops/cuda.h"
#endif

namespace petx {
namespace {

// What forward and backward share, in the schema's order.
#define PETX_CORES_ARGUMENTS "Tensor core, Tensor modes, Tensor? threshold"
#define PETX_CORES_OPTIONS "int gate, float temperature"

ModeCoresParams checked(const char* op, const Checker& check, const Tensor& core, const Tensor& modes,
                        const OptionalTensor& threshold, int64_t gate, double temperature) {
  ModeCoresParams p = {};
  p.dtype = kernel_dtype(op, "core", core);
  if ((core.dim() != 1 && core.dim() != 3) || core.sizes()[0] < 1)
    fail(op, "core must be [R, R, R] or [R], got ", shape_text(core));
  if (modes.dim() != 2) fail(op, "modes must be [n, R], got ", shape_text(modes));
  p.diagonal = core.dim() == 1;
  p.rank = core.sizes()[0], p.modes = modes.sizes()[0];
  p.core = check("core", core, p.diagonal ? std::vector<int64_t>{p.rank} : std::vector<int64_t>(3, p.rank));
  p.vectors = check("modes", modes, {p.modes, p.rank});
  p.gate = option<Gate>(op, "gate", gate, 4);
  if (!(temperature > 0)) fail(op, "temperature must be positive, got ", temperature);
  p.temperature = temperature;
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
Tensor fwd(Tensor core, Tensor modes, OptionalTensor threshold, int64_t gate, double temperature) {
  const char* op = "mode_cores";
  ModeCoresParams p = checked(op, Checker(op, core), core, modes, threshold, gate, temperature);
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

// Gradients of core, modes and threshold, empty where not asked for.
template <void (*launch)(const Tensor& core, const ModeCoresParams& p, const ModeCoresGrads& g)>
std::tuple<Tensor, Tensor, Tensor> bwd(Tensor dcores, Tensor core, Tensor modes, OptionalTensor threshold,
                                       int64_t needs, int64_t gate, double temperature) {
  const char* op = "mode_cores (backward)";
  Checker check(op, core);
  ModeCoresParams p = checked(op, check, core, modes, threshold, gate, temperature);
  ModeCoresGrads g = {};
  std::vector<int64_t> shape = {p.modes, p.rank};
  if (!p.diagonal) shape.push_back(p.rank);
  g.dcores = check("dcores", dcores, shape);
  auto compute = compute_type(core);
  WantedGrads wanted(core, needs, !p.modes);
  std::tuple<Tensor, Tensor, Tensor> grads{wanted(0, core, compute, g.dcore), wanted(1, modes, compute, g.dvectors),
                                           wanted(2, threshold, compute, g.dthreshold)};
  if (p.modes && (g.dcore || g.dvectors || g.dthreshold)) launch(core, p, g);
  return grads;
}

}  // namespace
}  // namespace petx

STABLE_TORCH_LIBRARY_FRAGMENT(petx, m) {
  m.def("mode_cores_fwd(" PETX_CORES_ARGUMENTS ", " PETX_CORES_OPTIONS ") -> Tensor");
  m.def("mode_cores_bwd(Tensor dcores, " PETX_CORES_ARGUMENTS ", int needs, " PETX_CORES_OPTIONS
        ") -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(petx, CPU, m) {
  m.impl("mode_cores_fwd", TORCH_BOX(&petx::fwd<petx::fwd_on_cpu>));
  m.impl("mode_cores_bwd", TORCH_BOX(&petx::bwd<petx::bwd_on_cpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(petx, CUDA, m) {
  m.impl("mode_cores_fwd", TORCH_BOX(&petx::fwd<petx::fwd_on_cuda>));
  m.impl("mode_cores_bwd", TORCH_BOX(&petx::bwd<petx::bwd_on_cuda>));
}
#endif
