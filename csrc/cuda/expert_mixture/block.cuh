// The expert mixture as a block of rows sees it: what forward and backward, fused and hybrid, compute alike.
//
// Products as wide as the experts' rank are made by the whole block, a tile of columns at a time. What is K wide and
// belongs to a row (gates, the sum of up biases, the gate's part of dx) is done by the four threads that own the row:
// a tile for it would be all but empty.
#pragma once

#include "cuda/common/row_block.cuh"
#include "cuda/expert_mixture/plan.h"
#include "kernels/expert_mixture.h"

namespace petx::cuda {

template <class C>
PETX_DEVICE C activate(ExpertActivation kind, C u) {
  switch (kind) {
    case ExpertActivation::relu:
      return expert_activation<ExpertActivation::relu>(u);
    case ExpertActivation::gelu:
      return expert_activation<ExpertActivation::gelu>(u);
    case ExpertActivation::gelu_tanh:
      return expert_activation<ExpertActivation::gelu_tanh>(u);
    default:
      return u;
  }
}

template <class C>
PETX_DEVICE C activation_slope(ExpertActivation kind, C u) {
  switch (kind) {
    case ExpertActivation::relu:
      return expert_activation_slope<ExpertActivation::relu>(u);
    case ExpertActivation::gelu:
      return expert_activation_slope<ExpertActivation::gelu>(u);
    case ExpertActivation::gelu_tanh:
      return expert_activation_slope<ExpertActivation::gelu_tanh>(u);
    default:
      return C(1);
  }
}

// gates [K] = the softmax of the top_k largest of logit(k), of equal ones the first; the others exactly zero. Of K
// values this thread writes each `step`-th from `begin` on.
template <class C, class Logit>
PETX_DEVICE void softmax(const Logit& logit, int64_t experts, int64_t top_k, C* gates, int64_t begin, int64_t step) {
  C most = logit(0);
#pragma unroll 1
  for (int64_t k = 1; k < experts; ++k) {
    C value = logit(k);
    most = value > most ? value : most;
  }
  int64_t last = experts - 1;  // the smallest that is kept
#pragma unroll 1
  for (int64_t k = 0; top_k < experts && k < experts; ++k) {
    int64_t larger = 0;
#pragma unroll 1
    for (int64_t j = 0; j < experts; ++j) larger += logit(j) > logit(k) || (logit(j) == logit(k) && j < k);
    if (larger == top_k - 1) last = k;
  }
  C least = logit(last), sum = 0;
  auto kept = [&](int64_t k) { return top_k == experts || (!(logit(k) < least) && !(logit(k) == least && k > last)); };
#pragma unroll 1
  for (int64_t k = 0; k < experts; ++k)
    if (kept(k)) sum += exponential(logit(k) - most);
#pragma unroll 1
  for (int64_t k = begin; k < experts; k += step) write(gates + k, kept(k) ? exponential(logit(k) - most) / sum : C(0));
}

template <class S>
class Mixture : public RowBlock<S> {
  using Base = RowBlock<S>;

 public:
  using Base::first, Base::rows, Base::row, Base::sharer, Base::token, Base::valid, Base::row_sum, Base::block_rows,
      Base::weight_rows;
  using typename Base::C, typename Base::T, typename Base::Tile;

  PETX_DEVICE Mixture(const ExpertMixtureParams& params, int64_t block) : Base(params.rows, block), p(params) {}

  PETX_DEVICE bool in_scope(int64_t t) const { return !p.scope || read(p.scope + t); }
  PETX_DEVICE C gate(int64_t t, int64_t k) const {
    return p.gated() ? read(static_cast<const C*>(p.gates) + p.gate_row(t) * p.experts + k) : C(1) / C(p.experts);
  }

  // Calls visit(token, column, position) for all values of the block's rows of a [N, width] tensor, neighbouring
  // threads at neighbouring values.
  template <class Visit>
  PETX_DEVICE void each_value(int64_t width, const Visit& visit) const {
#pragma unroll 1
    for (int64_t i = thread_index(); i < rows * width; i += Tile::kThreads)
      visit(first + i / width, i % width, first * width + i);
  }

  // What goes into the up product: beta g act(u); nothing for tokens out of scope.
  PETX_DEVICE C hidden(int64_t t, int64_t column, C u) const {
    return in_scope(t) ? C(p.beta) * gate(t, column / p.rank()) * activate(p.activation, u) : C(0);
  }

  // y of one value from its product.
  PETX_DEVICE void put_result(T* out, int64_t t, int64_t column, C product) const {
    int64_t i = t * p.d + column;
    if (!in_scope(t)) {
      write(out + i, read(static_cast<const T*>(p.x) + i));
      return;
    }
    C y = C(p.alpha) * at<T>(p.x, i) + product;
    if (p.up_bias) {
      C sum = 0;
      for (int64_t k = 0; k < p.experts; ++k) sum += gate(t, k) * at<T>(p.up_bias, k * p.d + column);
      y += C(p.beta) * sum;
    }
    put<T>(out, i, y);
  }

  // dx of one value from its product; dlogits [N, K].
  PETX_DEVICE void put_dx(void* dx, const void* dout, const T* dlogits, int64_t t, int64_t column, C product) const {
    int64_t i = t * p.d + column;
    C value = (in_scope(t) ? C(p.alpha) : C(1)) * at<T>(dout, i) + product;
    for (int64_t k = 0; p.gated() && k < p.experts; ++k)
      value += at<T>(dlogits, t * p.experts + k) * at<T>(p.gate_weight, k * p.d + column);
    put<T>(dx, i, value);
  }

  const ExpertMixtureParams& p;
};

// Sums over a sample's tokens, one block a sample: a warp's lanes take neighbouring columns, its eight warps every
// eighth token, so that the order depends on the shape alone.
class SampleSums {
 public:
  static constexpr int kThreads = kSumLaunch.threads, kColumns = 32, kWarps = kThreads / kColumns;
  template <class C>
  static constexpr int shared_bytes() {
    return 2 * kThreads * sizeof(C);
  }

  // Calls visit(column, sum over tokens of value(token, column), number of tokens that count) for `width` columns, by
  // one thread each; value is not asked for tokens for which only(token) is false.
  template <class C, class Only, class Counts, class Value, class Visit>
  PETX_DEVICE static void run(int64_t sample, int64_t length, int64_t width, const Only& only, const Counts& counts,
                              const Value& value, const Visit& visit) {
    int lane = thread_index() % kColumns, warp = thread_index() / kColumns;
    Shared<C> sums(0), sizes(kThreads * sizeof(C));
    for (int64_t begin = 0; begin < width; begin += kColumns) {
      int64_t column = begin + lane;
      C sum = 0, size = 0;
      for (int64_t t = sample * length + warp; t < (sample + 1) * length; t += kWarps) {
        if (column < width && only(t)) sum += value(t, column);
        if (counts(t)) size += C(1);
      }
      sums.set(thread_index(), sum), sizes.set(thread_index(), size);
      sync_block();
      if (warp == 0 && column < width) {
        for (int k = 1; k < kWarps; ++k) {
          sum += sums.get(k * kColumns + lane);
          size += sizes.get(k * kColumns + lane);
        }
        visit(column, sum, size);
      }
      sync_block();
    }
  }
};

}  // namespace petx::cuda
