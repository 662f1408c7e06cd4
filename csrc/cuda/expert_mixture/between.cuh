// The pass of expert_mixture's forward between its two projections, and what the forward's kernels hand each other.
#pragma once

#include "cuda/expert_mixture/columns.cuh"
#include "cuda/expert_mixture/strips.cuh"

namespace petx::cuda {

template <class T>
struct MixtureWork {
  using C = Compute<T>;
  T* hidden;       // [N, K r] beta g act(u)
  C* logits;       // [splits, N, K] without bias, the first the sum of all where there are several
  C* parts;        // [splits, N, K r] of u without bias, where several blocks share its depth
  C* mean_logits;  // [samples, K]
  T* images;       // of the up weight's rows, where y is made by strips
};

// Between the projections: a token's gates, u with its bias if cuBLAS or parts of it are without, and what goes into
// the up product, beta g act(u) or, for tokens out of scope, nothing.
template <class T>
class MixtureBetween : MixtureRow<T> {
  using Base = MixtureRow<T>;
  using Base::p, Base::lane, Base::token, Base::mixed;
  using typename Base::C;
  using typename Base::Run;

 public:
  PETX_DEVICE MixtureBetween(const MixtureCall<C>& call, const MixtureWork<T>& work) : Base(call), work_(work) {}

  // `parts`: u and the logits come in so many.
  template <bool parts>
  PETX_DEVICE void run(bool add_bias, int64_t splits) const {
    if constexpr (parts) {
      for (int64_t k = lane; this->valid && k < p.experts; k += Base::kLanes) {
        const int64_t i = token * p.experts + k;
        write(work_.logits + i, Base::sum_of_values(work_.logits, splits, p.rows * p.experts, i));
      }
      sync_block();  // other logits come from other lanes
    }
    if (p.gate == ExpertGate::token) {
      auto logit = [&](int64_t k) {
        return read(work_.logits + token * p.experts + k) + at_or_zero<T>(p.gate_bias, k);
      };
      if (this->valid) softmax(logit, p.experts, p.top_k, this->gates, lane, Base::kLanes);
      sync_block();  // other gates come from other lanes
    }
    for (int64_t k = 0; k < p.experts; ++k) {
      const C scale = mixed ? p.beta * this->gate(k) : C(0);
      this->each_run(k, [&](int64_t i, int64_t column, int64_t left) {
        Run u =
            parts ? Base::sum_of_parts(work_.parts, splits, p.rows * p.stacked, i, left) : Base::load_run(p.u, i, left);
        if (add_bias || parts) {
          if (p.down_bias) RowBlock<T>::add_to(u, Base::load_run(p.down_bias, column, left));
          Base::store_run(p.u, i, left, u);
          u = RowBlock<T>::rounded(u);
        }
        Run hidden = scaled_activation(p.activation, u, scale);
        Base::store_run(work_.hidden, i, left, mixed ? hidden : Run{});
      });
    }
  }

 private:
  const MixtureWork<T>& work_;
};

// The same of equal gates, where torch makes the products. u stays as it lies, without its bias, which the backward
// adds as it reads u: to write u again would cost a third of this pass' bytes.
template <class T>
PETX_DEVICE void mix_columns(const MixtureCall<Compute<T>>& p, const MixtureWork<T>& work, const ColumnPass& pass) {
  using Pass = MixtureColumns<T>;
  const Pass own(p, pass, p.stacked);
  const typename Pass::Run bias = own.down_bias();
  // Of tokens out of scope, too, whose product y leaves out.
  own.each_row([&](int64_t, int64_t i, bool) {
    const typename Pass::Run u = own.biased(own.load_run(p.u, i), bias);
    own.store_run(work.hidden, i, scaled_activation(p.activation, u, p.beta * p.equal_gate));
  });
}

template <bool parts, class T>
PETX_DEVICE void mix_between(const MixtureCall<Compute<T>>& p, const MixtureWork<T>& work, bool add_bias,
                             int64_t splits) {
  beside_images<T>(
      p, work.images, [&] { MixtureBetween<T>(p, work).template run<parts>(add_bias, splits); },
      [&](int64_t column) { return RowBlock<T>::weight_rows(p.up_weight, column, p.d, p.stacked); });
}

}  // namespace petx::cuda
