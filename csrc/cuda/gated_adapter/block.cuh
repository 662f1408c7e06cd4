// The VL-PET site as a block of rows sees it: what forward and backward compute alike.
//
// Products are made by the whole block, a tile of columns at a time. Everything else is done by the four threads that
// own a row: its sums are two shuffles away, and what belongs to a row (gate, statistics) is one number in a register.
#pragma once

#include "cuda/common/row_block.cuh"
#include "cuda/gated_adapter/plan.h"
#include "kernels/gated_adapter.h"
#include "kernels/philox.h"

namespace petx::cuda {

// gelu(z) of adapter and gate, [N, r] and [N, r_g]: made once a call, then an operand like any other.
template <class T>
struct Hidden {
  T* a;
  T* gate_a;
};

template <class C>
PETX_DEVICE C activate(Activation kind, C z) {
  return kind == Activation::gelu ? gelu<Activation::gelu>(z) : gelu<Activation::gelu_tanh>(z);
}

template <class S>
class Site : public RowBlock<S> {
  using Base = RowBlock<S>;

 public:
  using Base::first, Base::rows, Base::row, Base::sharer, Base::token, Base::valid, Base::row_sum, Base::block_rows,
      Base::weight_rows;
  using typename Base::C, typename Base::T, typename Base::Tile;

  PETX_DEVICE Site(const GatedAdapterParams& params, const Hidden<T>& hidden, int64_t block)
      : Base(params.rows, block),
        p(params),
        hidden(hidden),
        seed_(p.dropout > 0 ? static_cast<uint64_t>(read(p.seed)) : 0),
        threshold_(dropout_threshold(p.dropout)) {}

  PETX_DEVICE bool large() const { return p.granularity == Granularity::large; }
  PETX_DEVICE bool has_token_gate() const {
    return p.granularity == Granularity::middle_x || p.granularity == Granularity::small;
  }
  // The gate's weights of S (or h): middle_x has one vector for x + S, small one for each.
  PETX_DEVICE const void* gate_of_s() const {
    return static_cast<const T*>(p.gate_weight) + (p.granularity == Granularity::small ? p.d : 0);
  }
  // Makes the products of every tile of columns and calls visit(begin, end) once they are there: up's in slot 0,
  // where `modified` asks for it, the large gate's in slot 1.
  template <class Visit>
  PETX_DEVICE void each_tile(bool modified, const Visit& visit) const {
    int64_t width = p.d / p.heads, rank = p.r / p.heads;
    for (int64_t head = 0; head < p.heads; ++head) {
      int64_t end = (head + 1) * width;
      for (int64_t begin = head * width; begin < end; begin += Tile::kN) {
        if (modified)
          Tile::multiply(0, block_rows(hidden.a, p.r, head * rank), weight_rows(p.up_weight, begin, end, rank), rank);
        if (large())
          Tile::multiply(1, block_rows(hidden.gate_a, p.r_g), weight_rows(p.gate_weight, begin, end, p.r_g), p.r_g);
        visit(begin, end);
      }
    }
  }

  // S of this row, and the large gate's logit, at column `c` of the tile.
  PETX_DEVICE C modified(int64_t column, int c) const {
    return at<T>(p.h, token * p.d + column) + Tile::result(0, row, c) + at_or_zero<T>(p.up_bias, column);
  }
  PETX_DEVICE C logit(int64_t column, int c) const {
    return large() ? Tile::result(1, row, c) + at_or_zero<T>(p.gate_bias, column) : C(0);
  }

  // G of one value for the channel-wise levels; 1 for the others, whose gate belongs to the row.
  PETX_DEVICE C channel_gate(int64_t column, C logit) const {
    if (large()) return sigmoid(logit);
    if (p.granularity != Granularity::middle_y) return C(1);
    C z = at<T>(p.gate_weight, column);
    return C(1) + (p.middle_y == MiddleY::linear ? z : sigmoid(z));
  }

  // 0 or 1 / (1 - p). A thread's runs of columns mostly share a counter, so the last one's words are kept.
  PETX_DEVICE C dropout(int64_t column) {
    if (p.dropout <= 0) return C(1);
    uint64_t element = static_cast<uint64_t>(token) * p.d + column;
    if (element / 4 != counter_) words_ = philox(seed_, counter_ = element / 4);
    uint32_t low = element & 1 ? words_.word[1] : words_.word[0], high = element & 1 ? words_.word[3] : words_.word[2];
    return ((element & 2 ? high : low) >> 8) >= threshold_ ? C(1.0 / (1.0 - p.dropout)) : C(0);
  }

  // What is normalised: x + dropout(s G S).
  PETX_DEVICE C tail(int64_t column, C s, C gate, C dropped) const {
    C y = C(p.scale) * gate * s * dropped;
    return p.residual ? at<T>(p.x, token * p.d + column) + y : y;
  }

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
  const Hidden<T>& hidden;

 private:
  uint64_t seed_, counter_ = ~uint64_t(0);
  Philox4 words_ = {};
  uint32_t threshold_;
};

}  // namespace petx::cuda
