// Backward of mode_cores on the CPU: dgate(C) = dM^T P and dP = dM gate(C), a block of the core's rows at a time.
//
// dC needs no order. dP and the threshold's gradient are sums over C's rows, split as sums over tokens are
// (split_sums.h).

#include "cpu/common/split_sums.h"
#include "cpu/mode_cores/call.h"

namespace petx::cpu {
namespace {

template <class T, class G>
class Backward {
  using C = Compute<T>;

 public:
  Backward(const ModeCoresParams& p, const ModeCoresGrads& g) : p_(p), g_(g), call_(p), by_rank_(buffer<C>(p.rank)) {
    if (p.diagonal) return;
    dvectors_ = sums_.add(g.dvectors, p.modes * p.rank, true);
    dthresholds_ = sums_.add(g.dthreshold ? by_rank_.get() : nullptr, p.rank);
  }

  void run() const {
    if (p_.diagonal) {
      diagonal();
    } else {
      sums_.run(
          p_.slices(), [&](int64_t rows) { return scratch(rows); },
          [&](Scratch& t, int64_t begin, int64_t end, C* into) {
            each_block<G>(begin, end, [&](int64_t first, int64_t m) { block(t, first, m, into, first > begin); });
          });
    }
    finish();
  }

 private:
  using Sum = typename SplitSums<T, G>::Sum;
  struct Scratch {
    Buffer<G> gate, grads, product, weight;
  };

  Scratch scratch(int64_t rows) const {
    int64_t most = std::min(rows, kMostRows<G>);
    return {call_.gate_buffer(most), operand_buffer<T, G>(p_.modes * most), buffer<G>(most * p_.rank),
            buffer<G>(sums_.scratch({dvectors_}))};
  }

  void block(Scratch& t, int64_t first, int64_t m, C* into, bool later) const {
    host::Matrix grads = grad_columns(first, m, t.grads);
    sums_.product(dvectors_, t.weight, into, later, [&](G* to, bool more) {
      gemm<G>(grads, call_.gated_rows(first, m, t.gate), host::matrix(to, p_.modes, p_.rank), more);
    });
    if (!g_.dcore && !g_.dthreshold) return;
    gemm<G>(grads.transposed(), call_.vectors, host::matrix(t.product.get(), m, p_.rank));
    C* dcore = g_.dcore ? static_cast<C*>(g_.dcore) + first * p_.rank : nullptr;
    call_.loops.slopes(p_.gate, call_.core(first), call_.thresholds(), call_.inverse_temperature, t.product.get(), m,
                       p_.rank, dcore, dthresholds_.in(into));
  }

  const T* dcores() const { return static_cast<const T*>(g_.dcores); }
  host::Matrix grad_columns(int64_t first, int64_t m, const Buffer<G>& into) const {
    if constexpr (std::is_same_v<T, G>) {
      return call_.columns(dcores(), first, m);
    } else {
      for (int64_t n = 0; n < p_.modes; ++n)
        vectors<T, G>().convert(dcores() + n * p_.slices() + first, m, into.get() + n * m);
      return host::matrix(into.get(), p_.modes, m);
    }
  }

  void diagonal() const {
    auto weights = call_.gated_diagonal();
    C* sums = by_rank_.get();
    std::fill_n(sums, p_.rank, C(0));
    for (int64_t n = 0; n < p_.modes; ++n)
      for (int64_t k = 0; k < p_.rank; ++k) {
        int64_t i = n * p_.rank + k;
        C grad = load(dcores()[i]);
        sums[k] += grad * C(load(call_.mode(n)[k]));
        if (g_.dvectors) static_cast<C*>(g_.dvectors)[i] = grad * weights[k];
      }
    with_gate(p_.gate, [&]<Gate kind>() {
      for (int64_t k = 0; k < p_.rank; ++k) {
        GateSlopes<C> slopes =
            gate_slopes<kind>(C(load(call_.core(0)[k])), call_.threshold(k), call_.inverse_temperature);
        if (g_.dcore) static_cast<C*>(g_.dcore)[k] = sums[k] * slopes.value;
        sums[k] *= slopes.threshold;
      }
    });
  }

  // The threshold's gradient from that of a threshold for each rank.
  void finish() const {
    C* to = static_cast<C*>(g_.dthreshold);
    if (!to) return;
    if (p_.each) {
      std::copy_n(by_rank_.get(), p_.rank, to);
      return;
    }
    *to = 0;
    for (int64_t k = 0; k < p_.rank; ++k) *to += by_rank_[k];
  }

  const ModeCoresParams& p_;
  const ModeCoresGrads& g_;
  const ModeCoresCall<T, G> call_;
  Buffer<C> by_rank_;  // the gradient of a threshold for each rank
  SplitSums<T, G> sums_;
  Sum dvectors_ = {}, dthresholds_ = {};
};

}  // namespace

void mode_cores_bwd(const ModeCoresParams& p, const ModeCoresGrads& g) {
  with_types(p.dtype, [&]<class T, class G>() { Backward<T, G>(p, g).run(); });
}

}  // namespace petx::cpu
