// What the driver (expert_mixture/forward.cpp) and the row loops (expert_mixture/rows.inl) agree on.
//
// T is the storage type of the tensors, G the type matrix products run in, C the compute type. A block is `rows`
// consecutive tokens. A GEMM's operand has K r columns of the experts and, if there is a gate, K more. Its rows lie
// `width` apart; padding columns are zero (hidden_buffer).
#pragma once

#include "kernels/expert_mixture.h"

namespace petx::cpu {

template <class T, class G>
struct ExpertMixtureBlock {
  using C = Compute<T>;
  const ExpertMixtureParams* p;
  int64_t first, rows, width;
  C* work;  // [2 K r] of the calling thread
};

template <class T, class G>
struct ExpertMixtureLoops {
  using C = Compute<T>;
  using Block = ExpertMixtureBlock<T, G>;
  // u = product + bias, saved in T; logits [rows, K] = the product's other columns + gate_bias. Biases may be null.
  void (*pre_activation)(const Block& b, const G* product, const C* bias, const C* gate_bias, C* logits);
  // [rows, K] logits become gates: the softmax over the top_k largest of a row.
  void (*softmax)(C* logits, int64_t rows, int64_t experts, int64_t top_k);
  // hidden [rows, width] = beta g act(u) and beta g; zeros for tokens out of scope.
  void (*hidden)(const Block& b, G* hidden);
  // out = alpha x + product + constant, or x for tokens out of scope. `constant` may be null.
  void (*forward)(const Block& b, const T* x, const G* product, const C* constant, T* out);
  // q [rows, width], dout times the up projection, becomes the gradient of u (other columns zero) and gives dgates
  // [rows, K]; zeros for tokens out of scope.
  void (*hidden_bwd)(const Block& b, G* q, C* dgates);
  // [rows, K] gradients of gates become those of logits.
  void (*softmax_bwd)(C* dgates, const C* gates, int64_t rows, int64_t experts);
  // The columns past K r become the logits' gradients.
  void (*put_logits)(const Block& b, const C* dlogits, G* du);
  // dx = alpha dout + product, without alpha for tokens out of scope.
  void (*finish_dx)(const Block& b, const T* dout, const G* product, T* dx);
  // sum [count] += the columns of a [rows, stride] matrix.
  void (*column_sums)(const G* from, int64_t rows, int64_t stride, int64_t count, C* sum);
  // sum [d] += dout of the tokens in scope.
  void (*scope_sums)(const Block& b, const T* dout, C* sum);
};

// The loops for this machine; defined in expert_mixture/loops.cpp.
template <class T, class G>
const ExpertMixtureLoops<T, G>& expert_mixture_loops();

}  // namespace petx::cpu
