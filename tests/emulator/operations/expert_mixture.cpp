// What Python calls (tests/emulator/__init__.py): numbers and pointers in the order of ExpertMixtureParams' members.

#include "kernels/expert_mixture.h"

#include "cuda/common/primitives.cuh"
#include "machine.h"

#include <initializer_list>
#include <type_traits>

using namespace petx;

static ExpertMixtureParams params(const int64_t* integers, const double* reals, void* const* tensors) {
  ExpertMixtureParams p = {};
  auto option = [&](auto& to) { to = static_cast<std::decay_t<decltype(to)>>(*integers++); };
  option(p.dtype);
  for (int64_t* to : {&p.rows, &p.length, &p.d, &p.stacked, &p.experts, &p.top_k}) *to = *integers++;
  option(p.gate), option(p.activation);
  p.alpha = reals[0], p.beta = reals[1];
  for (const void** to : {&p.x, &p.down_weight, &p.down_bias, &p.up_weight, &p.up_bias, &p.gate_weight, &p.gate_bias})
    *to = *tensors++;
  p.scope = static_cast<const bool*>(*tensors++);
  p.pool = static_cast<const bool*>(*tensors++);
  p.u = *tensors++, p.gates = *tensors++;
  return p;
}

// In place of torch's products (cuBLAS) on a GPU: a launch whose first thread does it all, and which is counted as
// one that writes its result; not where nvcc's kernels are told one by one, among whose counts it would be. Where a
// sample of the blocks is run for counts alone it is noted and not made.
template <class T>
static int multiply_as(const host::Matrix& a, const host::Matrix& b, const host::Matrix& out) {
  auto at = [](const host::Matrix& m, int64_t i, int64_t j) {
    return static_cast<T*>(m.data) + i * m.row_stride + j * m.col_stride;
  };
  simt::m.products.insert(simt::m.products.end(), {out.rows, a.cols, out.cols});
  if (simt::m.sample) return 0;
  const simt::Counters before = simt::counters();
  bool right = simt::launch(1, 1, 32, 0, [&] {
    for (int64_t e = 0; cuda::thread_index() == 0 && e < out.rows * out.cols; ++e) {
      int64_t i = e / out.cols, j = e % out.cols;
      Compute<T> sum = 0;
      for (int64_t k = 0; k < a.cols; ++k) sum += load(*at(a, i, k)) * load(*at(b, k, j));
      T stored;
      store(stored, sum);
      cuda::write(at(out, i, j), stored);
    }
  });
  if (simt::m.find_body) simt::m.counters = before;
  return right ? 0 : 1;
}

static int multiply(void*, DType dtype, const host::Matrix& a, const host::Matrix& b, const host::Matrix& out) {
  switch (dtype) {
    case DType::f64:
      return multiply_as<double>(a, b, out);
    case DType::bf16:
      return multiply_as<BFloat16>(a, b, out);
    case DType::f16:
      return multiply_as<Half>(a, b, out);
    default:
      return multiply_as<float>(a, b, out);
  }
}

extern "C" int64_t expert_mixture_fwd_workspace(const int64_t* integers, const double* reals, void* const* tensors) {
  return cuda::expert_mixture_fwd_workspace(params(integers, reals, tensors));
}

extern "C" int expert_mixture_fwd(const int64_t* integers, const double* reals, void* const* tensors, void* out,
                                  void* workspace) {
  return cuda::expert_mixture_fwd(params(integers, reals, tensors), out, workspace, {multiply, nullptr}, nullptr);
}

static ExpertMixtureGrads grads(const int64_t* integers, void* const* tensors) {
  ExpertMixtureGrads g = {};
  g.narrow = integers[9];  // behind those of the parameters
  g.dout = *tensors++;
  for (void** to : {&g.dx, &g.down_weight, &g.down_bias, &g.up_weight, &g.up_bias, &g.gate_weight, &g.gate_bias})
    *to = *tensors++;
  return g;
}

extern "C" int64_t expert_mixture_bwd_workspace(const int64_t* integers, const double* reals, void* const* tensors,
                                                void* const* gradients) {
  return cuda::expert_mixture_bwd_workspace(params(integers, reals, tensors), grads(integers, gradients));
}

extern "C" int expert_mixture_bwd(const int64_t* integers, const double* reals, void* const* tensors,
                                  void* const* gradients, void* workspace) {
  return cuda::expert_mixture_bwd(params(integers, reals, tensors), grads(integers, gradients), workspace,
                                  {multiply, nullptr}, nullptr);
}

extern "C" int expert_mixture_hybrid(int64_t rows, int64_t stacked) {
  ExpertMixtureParams p = {};
  p.rows = rows, p.stacked = stacked;
  return cuda::expert_mixture_hybrid(p);
}
