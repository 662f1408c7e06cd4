// The VL-PET site as a block of rows sees it: what forward and backward compute alike.
//
// Products are made by the whole block, a tile of columns at a time. Everything else is done by the four threads that
// own a row, in runs of sixteen bytes: its sums are two shuffles away, and what belongs to a row (gate, statistics) is
// one number in a register. A thread has the same columns in every pass, so what it left in memory it finds again
// without a barrier.
#pragma once

#include "cuda/common/dropout.cuh"
#include "cuda/common/row_block.cuh"
#include "cuda/gated_adapter/plan.h"
#include "kernels/gated_adapter.h"

namespace petx::cuda {

// gelu(z) of adapter and gate, [N, r] and [N, r_g]: made once per call, then an operand like any other.
template <class T>
struct Hidden {
  T* a;
  T* gate_a;
};

// The parameters' doubles in the type that the kernels compute in.
template <class T>
struct SiteConstants {
  using C = Compute<T>;
  C scale, eps;
  Dropout<C> dropout;  // keeps by scale / (1 - p)

  explicit SiteConstants(const GatedAdapterParams& p) : scale(C(p.scale)), eps(C(p.eps)), dropout(p.dropout, p.seed) {
    dropout.keep *= scale;
  }
};

template <class S>
class Site : public RowBlock<S> {
  using Base = RowBlock<S>;

 public:
  using Base::add_to, Base::block_rows, Base::each_run, Base::first, Base::kRun, Base::load_run, Base::multiply_by,
      Base::result, Base::row, Base::row_sum, Base::rows, Base::sharer, Base::store_run, Base::token, Base::valid,
      Base::weight_rows;
  using typename Base::C, typename Base::Run, typename Base::T, typename Base::Tile;
  static constexpr bool kRough = sizeof(T) == 2;  // of functions whose results are rounded to 16 bits

  PETX_DEVICE Site(const GatedAdapterParams& params, const SiteConstants<T>& constants, const Hidden<T>& hidden,
                   int64_t block)
      : Base(params.rows, block), p(params), constants(constants), hidden(hidden) {}

  PETX_DEVICE bool large() const { return p.granularity == Granularity::large; }
  PETX_DEVICE bool has_token_gate() const {
    return p.granularity == Granularity::middle_x || p.granularity == Granularity::small;
  }
  // The gate's weights of S (or h): middle_x has one vector for x + S, small one for each.
  PETX_DEVICE const void* gate_of_s() const {
    return static_cast<const T*>(p.gate_weight) + (p.granularity == Granularity::small ? p.d : 0);
  }

  // Calls visit(begin, end) for every tile of columns. If they are wanted, the products of the tile are there by then:
  // up's in slot 0, the large gate's in slot 1.
  template <class Visit>
  PETX_DEVICE void each_tile(bool products, const Visit& visit) const {
    const int width = static_cast<int>(p.d / p.heads), rank = static_cast<int>(p.r / p.heads);
#pragma unroll 1
    for (int head = 0; head < p.heads; ++head) {
      const int end = (head + 1) * width;
#pragma unroll 1
      for (int begin = head * width; begin < end; begin += Tile::kN) {
        if (products) {
          Tile::multiply(0, block_rows(hidden.a, p.r, head * rank), weight_rows(p.up_weight, begin, end, rank), rank);
          if (large())
            Tile::multiply(1, block_rows(hidden.gate_a, p.r_g), weight_rows(p.gate_weight, begin, end, p.r_g), p.r_g);
        }
        visit(begin, end);
      }
    }
  }

  // gelu(z), of z as it is stored.
  PETX_DEVICE void activate(Run& z) const {
    if (p.activation == Activation::gelu) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) z.value[j] = gelu<Activation::gelu, kRough>(z.value[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kRun; ++j) z.value[j] = gelu<Activation::gelu_tanh, kRough>(z.value[j]);
    }
  }

  // S of this row from its product.
  PETX_DEVICE Run modified(int64_t column, int c, int64_t left) const {
    Run s = result(0, c);
    add_to(s, load_run(p.h, token * p.d + column, left));
    if (p.up_bias) add_to(s, load_run(p.up_bias, column, left));
    return s;
  }

  // G for the channel-wise levels, large's from its product; 1 for the others, whose gate belongs to the row.
  PETX_DEVICE Run channel_gate(int64_t column, int c, int64_t left) const {
    Run gate;
    if (large()) {
      gate = result(1, c);
      if (p.gate_bias) add_to(gate, load_run(p.gate_bias, column, left));
#pragma unroll
      for (int j = 0; j < kRun; ++j) gate.value[j] = sigmoid<kRough>(gate.value[j]);
    } else if (p.granularity == Granularity::middle_y) {
      gate = load_run(p.gate_weight, column, left);
#pragma unroll
      for (int j = 0; j < kRun; ++j)
        gate.value[j] = C(1) + (p.middle_y == MiddleY::linear ? gate.value[j] : sigmoid<kRough>(gate.value[j]));
    } else {
#pragma unroll
      for (int j = 0; j < kRun; ++j) gate.value[j] = C(1);
    }
    return gate;
  }

  // What G S is multiplied by: the scale, and 0 or 1 / (1 - p).
  PETX_DEVICE Run factors(int64_t column) const {
    Run factor;
    if (constants.dropout.drops()) {
      constants.dropout.factors(factor.value, token * p.d + column);
    } else {
#pragma unroll
      for (int j = 0; j < kRun; ++j) factor.value[j] = constants.scale;
    }
    return factor;
  }
  // That of one value, bit j of Dropout::kept.
  PETX_DEVICE C factor(uint32_t bits, int j) const { return bits >> j & 1 ? constants.dropout.keep : C(0); }

  // A sum over the row's sample, divided by the number of tokens that count: small's gate, to which only these
  // contribute, and the gate's gradient, to which all do.
  PETX_DEVICE C sample_mean(const void* per_token, bool only_counting) const {
    C sum = 0, count = 0;
    if (valid()) {
      int64_t begin = token / p.length * p.length;
      for (int64_t t = begin + sharer; t < begin + p.length; t += Base::kSharers) {
        if (!only_counting || counts(t)) sum += read(static_cast<const C*>(per_token) + t);
        if (counts(t)) count += C(1);
      }
    }
    sum = row_sum(sum), count = row_sum(count);
    return sum / (count > C(1) ? count : C(1));
  }
  PETX_DEVICE bool counts(int64_t t) const { return !p.mask || read(p.mask + t); }

  const GatedAdapterParams& p;
  const SiteConstants<T>& constants;
  const Hidden<T>& hidden;
};

}  // namespace petx::cuda
