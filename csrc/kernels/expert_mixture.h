// PETAL's mixture of instruction experts: the interface between ops/ and the kernels (cpu/, cuda/).
//
//   y = alpha x + beta sum_k g_k (B_k act(A_k x + a_k) + b_k)
//
// The K experts are stacked to one rank K r. Shapes stand beside each pointer; N = rows, C = the compute type (double
// for f64, else float).
#pragma once

#include <cmath>

#include "kernels/host.h"
#include "kernels/math.h"
#include "kernels/types.h"

namespace petx {

enum class ExpertGate : int32_t { uniform, token, sample };
enum class ExpertActivation : int32_t { none, relu, gelu, gelu_tanh };

struct ExpertMixtureParams {
  DType dtype;
  int64_t rows, length;    // N tokens, in samples of `length`
  int64_t d, stacked;      // widths of x and of all experts' ranks together, K r
  int64_t experts, top_k;  // K, and how many of them a gate lets through
  ExpertGate gate;
  ExpertActivation activation;
  double alpha, beta;

  const void* x;            // [N, d]
  const void* down_weight;  // [K r, d]
  const void* down_bias;    // [K r] or null
  const void* up_weight;    // [d, K r]
  const void* up_bias;      // [K, d] or null
  const void* gate_weight;  // [K, d]  token, sample
  const void* gate_bias;    // [K] or null
  const bool* scope;        // [N] or null: tokens that are mixed; the others pass
  const bool* pool;         // [N] or null: tokens in a sample gate's mean

  // Saved by the forward for the backward.
  void* u;      // [N, K r] before the activation; of equal gates in the hybrid path on CUDA without the down bias
  void* gates;  // C [N, K] token, [N / length, K] sample; null for uniform

  PETX_HD bool gated() const { return gate != ExpertGate::uniform; }
  PETX_HD int64_t rank() const { return stacked / experts; }
  PETX_HD int64_t samples() const { return rows / length; }
  // The row of `gates` that a token reads.
  PETX_HD int64_t gate_row(int64_t token) const { return gate == ExpertGate::sample ? token / length : token; }
  PETX_HD bool empty() const { return rows == 0 || d == 0; }
};

struct ExpertMixtureGrads {
  const void* dout;  // [N, d]
  void* dx;          // [N, d] or null if not wanted, as every pointer below
  // Parameters' gradients, in the parameters' shapes, summed in C in an order fixed by the shape, and stored in C or
  // where bit i of `narrow` is set in the storage type: i counts the gradients from dx, 0, on. A CPU stores C alone.
  void* down_weight;
  void* down_bias;
  void* up_weight;
  void* up_bias;
  void* gate_weight;
  void* gate_bias;
  int64_t narrow;

  // Whether anything is wanted that the experts' hidden gradient leads to.
  bool hidden() const { return dx || down_weight || down_bias || gate_weight || gate_bias; }
};

template <ExpertActivation kind, class C>
PETX_INLINE C expert_activation(C u) {
  if constexpr (kind == ExpertActivation::relu) return u < C(0) ? C(0) : u;
  if constexpr (kind == ExpertActivation::gelu) return gelu<Activation::gelu>(u);
  if constexpr (kind == ExpertActivation::gelu_tanh) return gelu<Activation::gelu_tanh>(u);
  return u;
}

template <ExpertActivation kind, class C>
PETX_INLINE C expert_activation_slope(C u) {
  if constexpr (kind == ExpertActivation::relu) return u <= C(0) ? C(0) : C(1);
  if constexpr (kind == ExpertActivation::gelu) return gelu_derivative<Activation::gelu>(u);
  if constexpr (kind == ExpertActivation::gelu_tanh) return gelu_derivative<Activation::gelu_tanh>(u);
  return C(1);
}

// Whether logit a, number j, is taken before logit b, number k, where the largest are kept: NaN is larger than any
// number, and of equal ones the first is, as torch sorts.
template <class C>
PETX_INLINE bool taken_before(C a, int64_t j, C b, int64_t k) {
  const bool equal = a == b || (a != a && b != b);
  return equal ? j < k : a > b || a != a;
}

// The gate of an expert that is not among the largest: a zero, and where the row's softmax is NaN not finite either, as
// in the reference. Its sign says so to the backward, since its logit's gradient is zero whatever comes.
template <class C>
PETX_INLINE C gate_left_out(C sum) {
  return sum == sum ? C(-0.0) : C(-INFINITY);
}

// The gradient of a logit from those of the gates and their mean.
template <class C>
PETX_INLINE C logit_grad(C gate, C dgate, C mean) {
  const bool left_out = gate < C(0) || C(1) / gate < C(0);
  return left_out ? C(0) : gate * (dgate - mean);
}

namespace cpu {
void expert_mixture_fwd(const ExpertMixtureParams& p, void* out);
void expert_mixture_bwd(const ExpertMixtureParams& p, const ExpertMixtureGrads& g);
}  // namespace cpu

namespace cuda {
// GEMMs on device memory that the hybrid path leaves to torch (cuBLAS, same stream): out = a b; returns a cudaError_t.
struct Products {
  int (*multiply)(void* context, DType dtype, const host::Matrix& a, const host::Matrix& b, const host::Matrix& out);
  void* context;
};

// Whether this call's products go through `Products`; from shapes alone, or as PETX_EXPERT_MIXTURE=fused or hybrid
// says.
bool expert_mixture_hybrid(const ExpertMixtureParams& p);

// `stream` is a cudaStream_t; the launchers return a cudaError_t.
// `workspace` has as many bytes as the function of that name asks for, which reads shapes and which pointers are null.
int64_t expert_mixture_fwd_workspace(const ExpertMixtureParams& p);
int expert_mixture_fwd(const ExpertMixtureParams& p, void* out, void* workspace, const Products& products,
                       void* stream);
int64_t expert_mixture_bwd_workspace(const ExpertMixtureParams& p, const ExpertMixtureGrads& g);
int expert_mixture_bwd(const ExpertMixtureParams& p, const ExpertMixtureGrads& g, void* workspace,
                       const Products& products, void* stream);
}  // namespace cuda

}  // namespace petx
