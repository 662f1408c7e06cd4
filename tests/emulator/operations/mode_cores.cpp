// What Python calls (mode_cores.py): numbers and pointers in the order of ModeCoresParams' members.

#include "kernels/mode_cores.h"

using namespace petx;

static ModeCoresParams params(const int64_t* integers, double temperature, void* const* tensors) {
  ModeCoresParams p = {};
  p.dtype = static_cast<DType>(integers[0]);
  p.modes = integers[1], p.rank = integers[2], p.diagonal = integers[3];
  p.gate = static_cast<Gate>(integers[4]), p.each = integers[5], p.temperature = temperature;
  p.core = tensors[0], p.vectors = tensors[1], p.threshold = tensors[2];
  return p;
}

extern "C" int mode_cores_fwd(const int64_t* integers, const double* reals, void* const* tensors, void* cores) {
  return cuda::mode_cores_fwd(params(integers, reals[0], tensors), cores, nullptr);
}

// Of `integers`, the one behind those of the parameters says which gradients are narrow.
static ModeCoresGrads grads(const int64_t* integers, void* const* tensors) {
  return {tensors[0], tensors[1], tensors[2], tensors[3], integers[6]};
}

extern "C" int64_t mode_cores_bwd_workspace(const int64_t* integers, const double* reals, void* const* tensors,
                                            void* const* gradients) {
  return cuda::mode_cores_bwd_workspace(params(integers, reals[0], tensors), grads(integers, gradients));
}

extern "C" int mode_cores_bwd(const int64_t* integers, const double* reals, void* const* tensors,
                              void* const* gradients, void* workspace) {
  return cuda::mode_cores_bwd(params(integers, reals[0], tensors), grads(integers, gradients), workspace, nullptr);
}
