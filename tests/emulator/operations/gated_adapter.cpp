// What Python calls (tests/emulator/__init__.py): numbers and pointers in the order of GatedAdapterParams' members.

#include "kernels/gated_adapter.h"

#include <initializer_list>
#include <type_traits>

using namespace petx;

static GatedAdapterParams params(const int64_t* integers, const double* reals, void* const* tensors) {
  GatedAdapterParams p = {};
  auto option = [&](auto& to) { to = static_cast<std::decay_t<decltype(to)>>(*integers++); };
  option(p.dtype);
  for (int64_t* to : {&p.rows, &p.length, &p.d, &p.d_x, &p.r, &p.r_g, &p.heads}) *to = *integers++;
  option(p.granularity), option(p.activation), option(p.gate_input), option(p.middle_y), option(p.placement);
  option(p.norm), option(p.residual);
  p.scale = reals[0], p.dropout = reals[1], p.eps = reals[2];
  for (const void** to : {&p.h, &p.x, &p.down_weight, &p.down_bias, &p.up_weight, &p.up_bias, &p.gate_down_weight,
                          &p.gate_down_bias, &p.gate_weight, &p.gate_bias, &p.norm_weight, &p.norm_bias, &p.skip})
    *to = *tensors++;
  p.mask = static_cast<const bool*>(*tensors++);
  p.seed = static_cast<const int64_t*>(*tensors++);
  for (void** to : {&p.z, &p.gate_z, &p.token_gate, &p.norm_stats}) *to = *tensors++;
  return p;
}

extern "C" int64_t gated_adapter_fwd_workspace(const int64_t* integers, const double* reals, void* const* tensors) {
  return cuda::gated_adapter_fwd_workspace(params(integers, reals, tensors));
}

extern "C" int gated_adapter_fwd(const int64_t* integers, const double* reals, void* const* tensors, void* out,
                                 void* workspace) {
  return cuda::gated_adapter_fwd(params(integers, reals, tensors), out, workspace, nullptr);
}

static GatedAdapterGrads grads(const int64_t* integers, void* const* tensors) {
  GatedAdapterGrads g = {};
  g.narrow = integers[15];  // behind those of the parameters
  g.dout = *tensors++;
  for (void** to : {&g.dh, &g.dx, &g.down_weight, &g.down_bias, &g.up_weight, &g.up_bias, &g.gate_down_weight,
                    &g.gate_down_bias, &g.gate_weight, &g.gate_bias, &g.norm_weight, &g.norm_bias, &g.skip})
    *to = *tensors++;
  return g;
}

extern "C" int64_t gated_adapter_bwd_workspace(const int64_t* integers, const double* reals, void* const* tensors,
                                               void* const* gradients) {
  return cuda::gated_adapter_bwd_workspace(params(integers, reals, tensors), grads(integers, gradients));
}

extern "C" int gated_adapter_bwd(const int64_t* integers, const double* reals, void* const* tensors,
                                 void* const* gradients, void* workspace) {
  return cuda::gated_adapter_bwd(params(integers, reals, tensors), grads(integers, gradients), workspace, nullptr);
}
