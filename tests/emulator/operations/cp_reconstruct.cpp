// What Python calls (tests/emulator/__init__.py): numbers and pointers in the order of CpReconstructParams' members.

#include "kernels/cp_reconstruct.h"

#include <initializer_list>

using namespace petx;

static CpReconstructParams params(const int64_t* integers, const double* reals, void* const* factors) {
  CpReconstructParams p = {};
  p.dtype = static_cast<DType>(*integers++);
  for (int64_t* to : {&p.modules, &p.d_out, &p.d_in, &p.rank}) *to = *integers++;
  p.diagonal = *integers++;
  p.gate = static_cast<Gate>(*integers++);
  p.thresholds = *integers++;
  p.temperature = reals[0], p.scale = reals[1];
  for (const void** to : {&p.u, &p.v, &p.cores, &p.threshold}) *to = *factors++;
  return p;
}

// Of `integers`, the one behind those of the parameters says which gradients are narrow.
static CpReconstructGrads grads(const int64_t* integers, void* const* tensors) {
  return {tensors[0], tensors[1], tensors[2], tensors[3], integers[8]};
}

extern "C" int64_t cp_reconstruct_fwd_workspace(const int64_t* integers, const double* reals, void* const* factors) {
  return cuda::cp_reconstruct_fwd_workspace(params(integers, reals, factors));
}

extern "C" int cp_reconstruct_fwd(const int64_t* integers, const double* reals, void* const* factors,
                                  void* const* weights, void* const* out, void* workspace) {
  return cuda::cp_reconstruct_fwd(params(integers, reals, factors), weights, out, workspace, nullptr);
}

extern "C" int64_t cp_reconstruct_bwd_workspace(const int64_t* integers, const double* reals, void* const* factors,
                                                void* const* gradients) {
  return cuda::cp_reconstruct_bwd_workspace(params(integers, reals, factors), grads(integers, gradients));
}

extern "C" int cp_reconstruct_bwd(const int64_t* integers, const double* reals, void* const* factors,
                                  void* const* gradients, void* const* dout, void* workspace) {
  return cuda::cp_reconstruct_bwd(params(integers, reals, factors), dout, grads(integers, gradients), workspace,
                                  nullptr);
}
