// What the launches of expert_mixture's backward do; backward.cu has their order.
#pragma once

#include "cuda/expert_mixture/columns.cuh"

namespace petx::cuda {

template <class T>
struct MixtureGradWork {
  using C = Compute<T>;
  T* du;           // [N, K r] first q
  C* parts;        // [splits, N, K r] of q, where several blocks share its depth
  C* gate_parts;   // [splits, N, K] then of dout . b_k
  T* hidden;       // [N, K r] beta g act(u)
  T* scaled_gate;  // [N, K] beta g, zeros out of scope: up_bias' gradient is its product with dout
  C* equal_gate;   // [N] the same where all gates are equal: then the gradient of each bias is one sum
  C* bias_sums;    // [splits, d] that sum's parts where a pass over dout makes them
  C* rank_sums;    // [splits, K r] and those of du's columns
  C* dgates;       // [N, K]
  T* raw_dgates;   // [N, K] dout . b_k by cuBLAS
  T* dlogits;      // [N, K]
  C* sample;       // [samples, K] gradients of samples' logits
  C* token;        // [samples, K] the part of each token that counts
  T* down_weight;  // [K r, d] and
  T* up_weight;    // [d, K r] by cuBLAS
  T* images;       // of the down weight's columns, where dx is made by strips
};

// What a token's values weigh in each expert, where gates are equal.
template <class C>
PETX_DEVICE C equal_gate_of(const MixtureCall<C>& p, bool mixed) {
  return mixed ? p.beta * p.equal_gate : C(0);
}

// dx of a run of a token from its product.
template <class T>
PETX_DEVICE void put_dx(const MixtureCall<Compute<T>>& p, const ExpertMixtureGrads& g, const MixtureGradWork<T>& work,
                        int64_t token, bool mixed, int64_t column, int64_t left, RunOf<T> dx, const RunOf<T>& dout) {
  const Compute<T> by = mixed ? p.alpha : Compute<T>(1);
#pragma unroll
  for (int j = 0; j < RowBlock<T>::kRun; ++j) dx.value[j] += by * dout.value[j];
  if (p.gated()) {
    const T* dlogits = work.dlogits + token * p.experts;
    add_vectors<T>(p, dx, p.gate_weight, column, left, [&](int64_t k) { return load(read(dlogits + k)); });
  }
  RowBlock<T>::store_run(g.dx, token * p.d + column, left, dx);
}

// du, and the hidden values, of a run from its u and q, or where nobody wants du, from u; for tokens out of scope
// zeros.
template <class T>
PETX_DEVICE RunOf<T> put_equal_gates(const MixtureCall<Compute<T>>& p, const MixtureGradWork<T>& work, int64_t i,
                                     int64_t left, bool mixed, const RunOf<T>& u, const RunOf<T>& q) {
  using Rows = RowBlock<T>;
  const Compute<T> scale = p.beta * p.equal_gate;
  if (work.hidden)
    Rows::store_run(work.hidden, i, left, mixed ? scaled_activation(p.activation, u, scale) : RunOf<T>{});
  if (!work.du) return {};
  const RunOf<T> du = mixed ? hidden_grads(p.activation, q, u, scale) : RunOf<T>{};
  Rows::store_run(work.du, i, left, du);
  return du;
}

// The products of 64 rows.
template <class T, class TileType = TileOf<T>>
class MixtureBackward : Mixture<T, TileType> {
  using Base = Mixture<T, TileType>;
  using Base::p, Base::token, Base::mixed, Base::kRun;
  using typename Base::C;
  using typename Base::Run;
  using typename Base::Tile;

 public:
  PETX_DEVICE MixtureBackward(const MixtureCall<C>& call, const ExpertMixtureGrads& grads,
                              const MixtureGradWork<T>& work, int64_t block = block_x())
      : Base(call, block), g(grads), work_(work) {}

  // q, and behind its tiles, where gates learn, dout . b_k.
  PETX_DEVICE void products(const ColumnShares& shares, int64_t q_tiles) const {
    Base::each_tile(shares, [&](int64_t tile) {
      const int64_t begin = (tile < q_tiles ? tile : tile - q_tiles) * Tile::kN;
      if (tile < q_tiles) {
        Tile::multiply(0, this->block_rows(g.dout, p.d), Base::weight_columns(p.up_weight, begin, p.stacked, p.stacked),
                       p.d);
        auto result = [&](int c) { return this->result(0, c); };
        return p.gated() ? put_q(begin, Tile::kN, result) : put_hidden(begin, Tile::kN, result);
      }
      Tile::multiply(0, this->block_rows(g.dout, p.d), Base::weight_rows(p.up_bias, begin, p.experts, p.d), p.d);
      put_dgates(begin, Tile::kN, [&](int c) { return this->result(0, c); });
    });
  }
  // The same of a tile of 128 rows, of which these are one `half`: q from column `begin` on in `columns` of it, and
  // behind them or, if there are none, from the first on, the experts from `expert` on.
  template <class Wide>
  PETX_DEVICE void put_wide_products(int half, int64_t begin, int columns, int64_t expert) const {
    put_q(begin, columns, [&](int c) { return this->template wide_result<Wide>(half, c); });
    if (columns < Wide::kN && work_.dgates && p.up_bias)
      put_dgates(expert, Wide::kN - columns,
                 [&](int c) { return this->template wide_result<Wide>(half, columns + c); });
  }
  // Of equal gates.
  template <class Wide>
  PETX_DEVICE void put_wide_hidden(int half, int64_t begin) const {
    put_hidden(begin, Wide::kN, [&](int c) { return this->template wide_result<Wide>(half, c); });
  }

  PETX_DEVICE void dx(const ColumnShares& shares) const {
    Base::each_tile(shares, [&](int64_t tile) {
      const int64_t begin = tile * Tile::kN;
      Tile::multiply(0, this->block_rows(work_.du, p.stacked), Base::weight_columns(p.down_weight, begin, p.d, p.d),
                     p.stacked);
      this->each_run(begin, p.d, [&](int64_t column, int c, int64_t left) {
        const Run dout = Base::load_run(g.dout, token * p.d + column, left);
        put_dx<T>(p, g, work_, token, mixed, column, left, this->result(0, c), dout);
      });
    });
  }

 private:
  // A tile's `columns` from `begin` on, whose runs of a row result(column) has.
  template <class Result>
  PETX_DEVICE void put_q(int64_t begin, int columns, const Result& result) const {
    this->each_run(
        begin, p.stacked,
        [&](int64_t column, int c, int64_t left) {
          const int64_t i = token * p.stacked + column;
          if (work_.parts)
            Base::store_wide_run(work_.parts, i, left, result(c));
          else
            Base::store_run(work_.du, i, left, result(c));
        },
        columns);
  }
  // Of equal gates: they leave nothing to a launch behind.
  template <class Result>
  PETX_DEVICE void put_hidden(int64_t begin, int columns, const Result& result) const {
    if (!begin && work_.equal_gate && this->valid() && !this->sharer)
      write(work_.equal_gate + token, equal_gate_of(p, mixed));
    this->each_run(
        begin, p.stacked,
        [&](int64_t column, int c, int64_t left) {
          const int64_t i = token * p.stacked + column;
          put_equal_gates<T>(p, work_, i, left, mixed, Base::load_run(p.u, i, left), result(c));
        },
        columns);
  }
  template <class Result>
  PETX_DEVICE void put_dgates(int64_t begin, int columns, const Result& result) const {
    this->each_run(
        begin, p.experts,
        [&](int64_t k, int c, int64_t left) {
          const Run run = result(c);
#pragma unroll
          for (int j = 0; j < kRun; ++j)
            if (j < left) write(work_.dgates + token * p.experts + k + j, run.value[j]);
        },
        columns);
  }

  const ExpertMixtureGrads& g;
  const MixtureGradWork<T>& work_;
};

// Of equal gates, where no product of these kernels does it: q becomes du, and the hidden values are made; the sums of
// du's columns. `add_bias` where u lies without (mix_columns).
template <class T>
PETX_DEVICE void columns_between(const MixtureCall<Compute<T>>& p, const MixtureGradWork<T>& work,
                                 const ColumnPass& pass, bool add_bias) {
  const MixtureColumns<T> own(p, pass, p.stacked);
  const RunOf<T> bias = add_bias ? own.down_bias() : RunOf<T>{};
  RunOf<T> sum = {};
  own.each_row([&](int64_t token, int64_t i, bool mixed) {
    if (work.equal_gate && !own.column) write(work.equal_gate + token, equal_gate_of(p, mixed));
    if (!work.hidden && !work.du) return;
    RunOf<T> u = own.load_run(p.u, i), q = {};
    if (add_bias) u = own.biased(u, bias);
    if (work.du) q = own.load_run(work.du, i);
    RowBlock<T>::add_to(sum, put_equal_gates<T>(p, work, i, own.left, mixed, u, q));
  });
  if (work.rank_sums) own.put_sums(work.rank_sums, sum);
}

// dx after torch's product, which lies there, and where gates are equal what the up biases' gradient is the sum of.
template <class T>
PETX_DEVICE void finish_columns(const MixtureCall<Compute<T>>& p, const ExpertMixtureGrads& g,
                                const MixtureGradWork<T>& work, const ColumnPass& pass) {
  const MixtureColumns<T> own(p, pass, p.d);
  RunOf<T> sum = {};
  own.each_row([&](int64_t token, int64_t i, bool mixed) {
    const RunOf<T> dout = own.load_run(g.dout, i);
    if (mixed) RowBlock<T>::add_to(sum, dout);
    if (g.dx) put_dx<T>(p, g, work, token, mixed, own.column, own.left, own.load_run(g.dx, i), dout);
  });
  if (!work.bias_sums) return;
#pragma unroll
  for (Compute<T>& value : sum.value) value *= p.beta * p.equal_gate;
  own.put_sums(work.bias_sums, sum);
}

// Between the products of gates that differ: q becomes du, the hidden values are made, and the gates' gradients; of a
// token's gate the logits' too. A row's lanes go through an expert's values side by side; then every eighth expert is
// one's.
template <class T>
class MixtureBetweenGrads : MixtureRow<T> {
  using Base = MixtureRow<T>;
  using Base::p, Base::lane, Base::token, Base::mixed, Base::valid, Base::kRun, Base::kLanes;
  using typename Base::C;
  using typename Base::Run;

 public:
  PETX_DEVICE MixtureBetweenGrads(const MixtureCall<C>& call, const MixtureGradWork<T>& work)
      : Base(call), work_(work) {}

  // `parts`: q and dout . b_k come in so many.
  template <bool parts>
  PETX_DEVICE void run(int64_t splits) const {
    const int64_t first_gate = token * p.experts, size = p.rows * p.stacked;
    C mean = 0;
#pragma unroll 1
    for (int64_t k = 0; k < p.experts; ++k) {
      const C gate = mixed ? this->gate(k) : C(0), scale = p.beta * gate;
      C along = 0;
      if (work_.hidden || work_.du)
        this->each_run(k, [&](int64_t i, int64_t, int64_t left) {
          const Run u = Base::load_run(p.u, i, left);
          if (work_.hidden) {
            const Run hidden = scaled_activation(p.activation, u, scale);
            Base::store_run(work_.hidden, i, left, mixed ? hidden : Run{});
          }
          if (!work_.du) return;
          // Rounded as it would lie in memory.
          Run q = parts ? RowBlock<T>::rounded(Base::sum_of_parts(work_.parts, splits, size, i, left))
                        : Base::load_run(work_.du, i, left);
          with_activation(p.activation, [&]<ExpertActivation kind>() {
#pragma unroll
            for (int j = 0; j < kRun; ++j) {
              if (work_.dgates) along += q.value[j] * expert_activation<kind>(u.value[j]);
              q.value[j] = hidden_grad<kind>(q.value[j], u.value[j], scale);
            }
          });
          Base::store_run(work_.du, i, left, mixed ? q : Run{});
        });
      along = Base::row_sum(along);
      if (!valid || k % kLanes != lane) continue;
      if (work_.scaled_gate) put<T>(work_.scaled_gate, first_gate + k, scale);
      if (!work_.dgates) continue;
      C dgate = mixed ? p.beta * (along + dout_along_bias<parts>(first_gate + k, splits)) : C(0);
      write(work_.dgates + first_gate + k, dgate);
      mean += gate * dgate;
    }
    if (!work_.dgates || p.gate != ExpertGate::token) return;
    mean = Base::row_sum(mean);
    for (int64_t k = lane; valid && k < p.experts; k += kLanes)
      put<T>(work_.dlogits, first_gate + k,
             mixed ? logit_grad(this->gate(k), read(work_.dgates + first_gate + k), mean) : C(0));
  }

 private:
  template <bool parts>
  PETX_DEVICE C dout_along_bias(int64_t i, int64_t splits) const {
    if (parts && work_.gate_parts) return Base::sum_of_values(work_.gate_parts, splits, p.rows * p.experts, i);
    if (work_.raw_dgates) return load(read(work_.raw_dgates + i));
    return p.up_bias ? read(work_.dgates + i) : C(0);
  }

  const MixtureGradWork<T>& work_;
};

}  // namespace petx::cuda
