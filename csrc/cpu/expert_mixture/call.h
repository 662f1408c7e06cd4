// The weights of one call of the expert mixture as operands of products, and these products.
//
// If there is a gate, its K rows are concatenated to the down weight (one GEMM for both), and the K up biases to the up
// weight. The concatenation copies the weights, which pays from N = K r tokens on: with fewer the gate and the biases
// have a small GEMM of their own.
#pragma once

#include <algorithm>

#include "cpu/common/products.h"
#include "cpu/expert_mixture/rows.h"

namespace petx::cpu {

// Row blocks, as row_blocks has them, but one block up to 512 rows: a GEMM packs its weights again for each block,
// they are large, and there is little to do beside the GEMMs.
inline constexpr int64_t kFewExpertRows = 512;
template <class G>
Division expert_blocks(int64_t rows) {
  return divide(rows, rows < kFewExpertRows ? 1 : 8, kMostRows<G>);
}

template <class T, class G>
class ExpertMixtureCall {
  using C = Compute<T>;

 public:
  explicit ExpertMixtureCall(const ExpertMixtureParams& p)
      : down_width(p.stacked + (p.gated() ? p.experts : 0)),
        width(ceil_div(down_width, 16) * 16),
        up_width(p.stacked + (p.gated() && p.up_bias ? p.experts : 0)),
        many_rows(p.rows >= p.stacked),
        d_(p.d),
        stacked_(p.stacked),
        joined_(!std::is_same_v<T, G> || many_rows) {
    down_.set(p.down_weight, p.stacked, p.gated() ? p.gate_weight : nullptr, p.experts, p.d, joined_);
    set_up(p);
    if (p.down_bias) widen(p.down_bias, p.stacked, down_bias_);
    if (p.gate_bias) widen(p.gate_bias, p.experts, gate_bias_);
    if (!p.gated() && p.up_bias) mean_up_bias(p);
  }

  // Columns of a block's hidden values: how many the down projection makes, with what stride from row to row, and how
  // many of them the up projection reads.
  const int64_t down_width, width, up_width;
  const bool many_rows;  // whether concatenating pays

  const C* down_bias() const { return down_bias_.get(); }
  const C* gate_bias() const { return gate_bias_.get(); }
  const C* constant() const { return constant_.get(); }  // beta / K sum of up biases [d], if gates are equal

  // out [n, width] = in [n, d] times the down weights (and the gate's).
  void down(const G* in, int64_t n, G* out) const {
    each(down_, [&](const host::Matrix& weight, int64_t column, bool) {
      gemm<G>(host::matrix(in, n, d_), weight.transposed(), columns(out, n, column, weight.rows));
    });
  }
  // out [n, d] = du [n, width] times the same weights, not transposed.
  void down_bwd(const G* du, int64_t n, G* out) const {
    each(down_, [&](const host::Matrix& weight, int64_t column, bool more) {
      gemm<G>(columns(du, n, column, weight.rows), weight, host::matrix(out, n, d_), more);
    });
  }
  // out [n, d] = hidden [n, width] times the up weights (and up biases).
  void up(const G* hidden, int64_t n, G* out) const {
    each(up_, [&](const host::Matrix& weight, int64_t column, bool more) {
      gemm<G>(columns(hidden, n, column, weight.cols), weight.transposed(), host::matrix(out, n, d_), more);
    });
  }
  // q [n, width] = dout [n, d] times the same weights, not transposed; columns from up_width to down_width become
  // zeros.
  void up_bwd(const G* dout, int64_t n, G* q) const {
    each(up_, [&](const host::Matrix& weight, int64_t column, bool) {
      gemm<G>(host::matrix(dout, n, d_), weight, columns(q, n, column, weight.cols));
    });
    if (up_width < down_width)
      for (int64_t i = 0; i < n; ++i) std::fill_n(q + i * width + up_width, down_width - up_width, G{});
  }

  // A buffer of `rows` rows of `width` values, for hidden values and their gradients. Padding columns are zero: torch's
  // 16-bit GEMM reads an operand some columns past its last one and multiplies them by zero, and zero times whatever
  // lies there may be NaN.
  Buffer<G> hidden_buffer(int64_t rows) const {
    auto values = buffer<G>(rows * width);
    for (int64_t i = 0; width > down_width && i < rows; ++i)
      std::fill_n(values.get() + i * width + down_width, width - down_width, G{});
    return values;
  }

  host::Matrix columns(const G* data, int64_t n, int64_t first, int64_t count) const {
    return host::matrix(data + first, n, count, width);
  }

 private:
  // A weight, and the K-wide one beside it if the two are not concatenated.
  struct Operands {
    host::Matrix main = {}, beside = {};
    Buffer<G> own;

    // Rows above rows.
    void set(const void* first, int64_t rows, const void* second, int64_t more, int64_t cols, bool joined) {
      const T *a = static_cast<const T*>(first), *b = static_cast<const T*>(second);
      if (std::is_same_v<T, G> && (!b || !joined)) {
        main = host::matrix(a, rows, cols);
        beside = host::matrix(b, b ? more : 0, cols);
        return;
      }
      own = buffer<G>((rows + (b ? more : 0)) * cols);
      vectors<T, G>().convert(a, rows * cols, own.get());
      if (b) vectors<T, G>().convert(b, more * cols, own.get() + rows * cols);
      main = host::matrix(own.get(), rows + (b ? more : 0), cols);
    }
  };

  // [d, K r] up weights, and [K, d] biases as K more columns.
  void set_up(const ExpertMixtureParams& p) {
    const T* bias = up_width > p.stacked ? static_cast<const T*>(p.up_bias) : nullptr;
    const T* weight = static_cast<const T*>(p.up_weight);
    if (!bias || !joined_) {
      up_.set(weight, p.d, nullptr, 0, p.stacked, joined_);
      if (bias) up_.beside = host::matrix(bias, p.experts, p.d).transposed();
      return;
    }
    up_.own = buffer<G>(p.d * up_width);
    for (int64_t i = 0; i < p.d; ++i) {
      G* row = up_.own.get() + i * up_width;
      vectors<T, G>().convert(weight + i * p.stacked, p.stacked, row);
      for (int64_t k = 0; k < p.experts; ++k) store(row[p.stacked + k], C(load(bias[k * p.d + i])));
    }
    up_.main = host::matrix(up_.own.get(), p.d, up_width);
  }

  void widen(const void* from, int64_t count, Buffer<C>& to) {
    to = buffer<C>(count);
    vectors<T, G>().widen(static_cast<const T*>(from), count, to.get());
  }

  void mean_up_bias(const ExpertMixtureParams& p) {
    Buffer<C> each;
    widen(p.up_bias, p.experts * p.d, each);
    constant_ = buffer<C>(p.d);
    vectors<T, G>().reduce(each.get(), p.experts, p.d, p.d, false, constant_.get());
    for (int64_t j = 0; j < p.d; ++j) constant_[j] *= C(p.beta) / C(p.experts);
  }

  // Calls product(weight, first of the `width` columns it stands for, whether its result is added).
  template <class Product>
  void each(const Operands& of, const Product& product) const {
    product(of.main, 0, false);
    if (of.beside.data) product(of.beside, stacked_, true);
  }

  int64_t d_, stacked_;
  bool joined_;
  Operands down_, up_;
  Buffer<C> down_bias_, gate_bias_, constant_;
};

}  // namespace petx::cpu
