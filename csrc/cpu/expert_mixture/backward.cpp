// Backward of the expert mixture on the CPU.
//
//   q = dout B;  dgate_k = beta (q . act(u) over expert k + dout . b_k);  du = beta g q act'(u)
//   dx = alpha dout + du A + dlogits W_g
//
// Row-local work needs no order; gradients of parameters are sums over tokens (split_sums.h). The gate's K
// columns are concatenated in every GEMM, as in the forward. A sample's gate needs the gradient of all its tokens, so
// with one du of all rows is computed first.

#include "cpu/common/split_sums.h"
#include "cpu/expert_mixture/call.h"

namespace petx::cpu {
namespace {

template <class T, class G>
class Backward {
  using C = Compute<T>;

 public:
  Backward(const ExpertMixtureParams& p, const ExpertMixtureGrads& g)
      : p_(p), g_(g), call_(p), loops_(expert_mixture_loops<T, G>()) {
    const int64_t d = p.d, experts = p.experts;
    if (p.gated() && call_.many_rows && (g.down_weight || g.gate_weight)) {
      joined_down_ = buffer<C>(call_.down_width * d);
      down_ = sums_.add(joined_down_.get(), call_.down_width * d, true);
    } else {
      down_ = sums_.add(g.down_weight, p.stacked * d, true);
      if (p.gated()) gate_ = sums_.add(g.gate_weight, experts * d, true);
    }
    if (call_.up_width > p.stacked && call_.many_rows && (g.up_weight || g.up_bias)) {
      up_columns_ = call_.up_width;
      up_stride_ = ceil_div(up_columns_, 16) * 16;  // a GEMM is a fifth slower if its result's rows are unaligned
      joined_up_ = buffer<C>(d * up_stride_);
      up_ = sums_.add(joined_up_.get(), d * up_stride_, true);
    } else {
      up_columns_ = up_stride_ = p.stacked;
      up_ = sums_.add(g.up_weight, d * p.stacked, true);
      if (p.gated()) up_bias_ = sums_.add(g.up_bias, experts * d, true);
    }
    down_bias_ = sums_.add(g.down_bias, p.stacked);
    if (p.gate == ExpertGate::token) gate_bias_ = sums_.add(g.gate_bias, p.experts);
    if (!p.gated() && g.up_bias) {
      equal_up_bias_ = buffer<C>(d);
      equal_ = sums_.add(equal_up_bias_.get(), d);
    }
  }

  void run() {
    bool sample = p_.gate == ExpertGate::sample && g_.hidden();
    if (sample) all_hidden_grads();
    sums_.run(
        p_.rows, [&](int64_t rows) { return scratch(rows); },
        [&](Scratch& t, int64_t begin, int64_t end, C* into) {
          each_block<G>(begin, end, [&](int64_t first, int64_t n) { block(t, first, n, into, first > begin); });
        },
        kFewExpertRows);
    finish();
  }

 private:
  using Sum = typename SplitSums<T, G>::Sum;
  struct Scratch {
    Buffer<G> x, dout, hidden, product, weight;
    Buffer<C> work, dlogits;
  };

  Scratch scratch(int64_t rows) const {
    int64_t n = std::min({rows, p_.rows, kMostRows<G>});
    return {operand_buffer<T, G>(n * p_.d),
            operand_buffer<T, G>(n * p_.d),
            call_.hidden_buffer(n),
            buffer<G>(g_.dx ? n * p_.d : 0),
            buffer<G>(sums_.scratch({down_, gate_, up_, up_bias_})),
            buffer<C>(2 * p_.stacked),
            buffer<C>(n * p_.experts)};
  }

  ExpertMixtureBlock<T, G> described(const Scratch& t, int64_t first, int64_t n) const {
    return {&p_, first, n, call_.width, t.work.get()};
  }
  const T* dout(int64_t row) const { return static_cast<const T*>(g_.dout) + row * p_.d; }
  const C* gates(int64_t row) const { return static_cast<const C*>(p_.gates) + row * p_.experts; }

  // sample: du of all rows, and every token's part of its sample's logits' gradient beside it.
  void all_hidden_grads() {
    const int64_t experts = p_.experts, width = call_.width;
    du_ = call_.hidden_buffer(p_.rows);
    Buffer<C> dgates = buffer<C>(p_.rows * experts), dlogits = buffer<C>(p_.samples() * experts);
    Division blocks = expert_blocks<G>(p_.rows);
    host::parallel(blocks.parts(), [&](int64_t begin, int64_t end) {
      Scratch t = scratch(blocks.size);
      for (int64_t i = begin; i < end; ++i) {
        int64_t first = blocks.begin(i), n = blocks.begin(i + 1) - first;
        G* q = du_.get() + first * width;
        call_.up_bwd(operand<T, G>(dout(first), n * p_.d, t.dout), n, q);
        loops_.hidden_bwd(described(t, first, n), q, dgates.get() + first * experts);
      }
    });
    for (int64_t sample = 0; sample < p_.samples(); ++sample) {
      C* sum = dlogits.get() + sample * experts;
      std::fill_n(sum, experts, C(0));
      int64_t begin = sample * p_.length, end = begin + p_.length, count = 0;
      for (int64_t i = begin; i < end; ++i) {
        count += counts(i);
        for (int64_t k = 0; k < experts; ++k) sum[k] += dgates[i * experts + k];
      }
      loops_.softmax_bwd(sum, gates(sample), 1, experts);
      for (int64_t i = begin; i < end; ++i)
        for (int64_t k = 0; k < experts; ++k) dgates[i * experts + k] = counts(i) ? sum[k] / C(count) : C(0);
    }
    Scratch none = {};
    loops_.put_logits(described(none, 0, p_.rows), dgates.get(), du_.get());
    if (g_.gate_bias)
      vectors<T, G>().reduce(dlogits.get(), p_.samples(), experts, experts, false, static_cast<C*>(g_.gate_bias));
  }
  bool counts(int64_t row) const { return !p_.pool || p_.pool[row]; }

  void block(Scratch& t, int64_t first, int64_t n, C* into, bool more) const {
    ExpertMixtureBlock<T, G> b = described(t, first, n);
    const bool up = up_.to || up_bias_.to;
    const G* from_above = g_.hidden() || up ? operand<T, G>(dout(first), n * p_.d, t.dout) : nullptr;
    if (equal_.to) loops_.scope_sums(b, dout(first), equal_.in(into));
    if (up) {
      loops_.hidden(b, t.hidden.get());
      host::Matrix above = host::matrix(from_above, n, p_.d);
      add(up_, t, into, more, above, columns(t.hidden.get(), n, 0, up_columns_), up_stride_);
      add(up_bias_, t, into, more, columns(t.hidden.get(), n, p_.stacked, p_.experts), above);
    }
    if (!g_.hidden()) return;
    G* du = du_ ? du_.get() + first * call_.width : t.hidden.get();
    if (!du_) {
      call_.up_bwd(from_above, n, du);
      loops_.hidden_bwd(b, du, t.dlogits.get());
      if (p_.gated()) {
        loops_.softmax_bwd(t.dlogits.get(), gates(first), n, p_.experts);
        loops_.put_logits(b, t.dlogits.get(), du);
        if (C* sum = gate_bias_.in(into))
          for (int64_t i = 0; i < n * p_.experts; ++i) sum[i % p_.experts] += t.dlogits[i];
      }
    }
    if (down_bias_.to) loops_.column_sums(du, n, call_.width, p_.stacked, down_bias_.in(into));
    if (down_.to || gate_.to) {
      const G* in = operand<T, G>(static_cast<const T*>(p_.x) + first * p_.d, n * p_.d, t.x);
      host::Matrix x = host::matrix(in, n, p_.d);
      add(down_, t, into, more, columns(du, n, 0, down_.count / p_.d), x);
      add(gate_, t, into, more, columns(du, n, p_.stacked, p_.experts), x);
    }
    if (!g_.dx) return;
    call_.down_bwd(du, n, t.product.get());
    loops_.finish_dx(b, dout(first), t.product.get(), static_cast<T*>(g_.dx) + first * p_.d);
  }

  host::Matrix columns(const G* data, int64_t n, int64_t first, int64_t count) const {
    return call_.columns(data, n, first, count);
  }

  // A block's part of the gradient a^T b of a weight.
  void add(const Sum& sum, const Scratch& t, C* into, bool more, const host::Matrix& a, const host::Matrix& b,
           int64_t stride = 0) const {
    auto multiply = [&](G* to, bool accumulate) {
      gemm<G>(a.transposed(), b, host::matrix(to, a.cols, b.cols, stride), accumulate);
    };
    sums_.product(sum, t.weight, into, more, multiply);
  }

  // What was summed side by side goes to its places.
  void finish() const {
    const int64_t d = p_.d, stacked = p_.stacked, experts = p_.experts;
    C* up_bias = static_cast<C*>(g_.up_bias);
    auto rows = [](int64_t count, const auto& copy) {
      constexpr int64_t kEach = 64;
      host::parallel(ceil_div(count, kEach), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * kEach; i < std::min(end * kEach, count); ++i) copy(i);
      });
    };
    if (const C* joined = joined_down_.get())
      rows(call_.down_width, [&](int64_t i) {
        C* to = static_cast<C*>(i < stacked ? g_.down_weight : g_.gate_weight);
        if (to) std::copy_n(joined + i * d, d, to + (i < stacked ? i : i - stacked) * d);
      });
    if (const C* joined = joined_up_.get())
      rows(d, [&](int64_t i) {
        const C* from = joined + i * up_stride_;
        if (g_.up_weight) std::copy_n(from, stacked, static_cast<C*>(g_.up_weight) + i * stacked);
        for (int64_t k = 0; up_bias && k < experts; ++k) up_bias[k * d + i] = from[stacked + k];
      });
    if (equal_up_bias_)
      for (int64_t k = 0; k < experts; ++k)
        for (int64_t j = 0; j < d; ++j) up_bias[k * d + j] = C(p_.beta) / C(experts) * equal_up_bias_[j];
  }

  const ExpertMixtureParams& p_;
  const ExpertMixtureGrads& g_;
  ExpertMixtureCall<T, G> call_;
  const ExpertMixtureLoops<T, G>& loops_;
  SplitSums<T, G> sums_;
  // Of the weights; gate_ and up_bias_ are not used if their values are part of the weight's sum beside them.
  Sum down_ = {}, gate_ = {}, up_ = {}, up_bias_ = {};
  Sum down_bias_ = {}, gate_bias_ = {}, equal_ = {};
  int64_t up_columns_, up_stride_;  // of up_
  Buffer<C> joined_down_, joined_up_, equal_up_bias_;
  Buffer<G> du_;
};

}  // namespace

// With no rows, or rows of no width, the caller's gradients are zeros already.
void expert_mixture_bwd(const ExpertMixtureParams& p, const ExpertMixtureGrads& g) {
  if (p.empty()) return;
  with_types(p.dtype, [&]<class T, class G>() { Backward<T, G>(p, g).run(); });
}

}  // namespace petx::cpu
