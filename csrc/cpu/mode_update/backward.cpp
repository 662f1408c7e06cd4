// Backward of PETAL's update on the CPU.
//
//   dg_k = dy_k V;  dV = sum_k dy_k^T g_k;  dM_k = drop_k(h)^T dg_k;  dh = sum_k drop_k(dg_k M_k^T)
//   dU = dh^T x;  dx = dh U
//
// g_k is recomputed from the saved h. If the cores are folded into V (N_k = V M_k^T), the sum over tokens is N_k's
// gradient, and V's and the cores' gradients follow from it:
//
//   dN_k = dy_k^T drop_k(h);  dV = sum_k dN_k M_k;  dM_k = dN_k^T V;  dh = sum_k drop_k(dy_k N_k)
//
// dh and dx need no order; gradients of parameters are sums over tokens (split_sums.h). What is not asked for is not
// computed.

#include "cpu/common/split_sums.h"
#include "cpu/mode_update/call.h"

namespace petx::cpu {
namespace {

template <class T, class G>
class Backward : ModeUpdateCall<T, G> {
  using Call = ModeUpdateCall<T, G>;
  using typename Call::C;

 public:
  Backward(const ModeUpdateParams& p, const ModeUpdateGrads& g) : Call(p), p_(p), g_(g) {
    du_ = sums_.add(g.du, p.rank * p.d_in, true);
    if (Call::folded()) {
      int64_t size = p.d_out * p.rank;
      if (g.dv || g.dcores) dfolded_values_ = buffer<C>(p.count * size);
      for (int64_t k = 0; k < p.count; ++k)
        dfolded_[k] = sums_.add(g.dy[k] && dfolded_values_ ? dfolded_values_.get() + k * size : nullptr, size, true);
      return;
    }
    dv_ = sums_.add(g.dv, p.d_out * p.rank, true);
    for (int64_t k = 0; k < p.count; ++k) {
      C* to = g.dy[k] && g.dcores ? static_cast<C*>(g.dcores) + k * p.core_size() : nullptr;
      dcores_[k] = sums_.add(to, p.core_size(), !p.diagonal);
    }
  }

  void run() const {
    sums_.run(
        p_.rows, [&](int64_t rows) { return scratch(rows); },
        [&](Scratch& t, int64_t begin, int64_t end, C* into) {
          each_block<G>(begin, end, [&](int64_t first, int64_t n) { block(t, first, n, into, first > begin); });
        });
    if (dfolded_values_) unfold();
  }

 private:
  using Sum = typename SplitSums<T, G>::Sum;
  struct Scratch {
    typename Call::Hidden hidden;
    Buffer<G> wide, dg, part, dh_operand, weight;
    Buffer<C> dh;
  };

  bool wants_dh() const { return g_.dx || g_.du; }

  Scratch scratch(int64_t rows) const {
    int64_t n = std::min({rows, p_.rows, kMostRows<G>}), narrow = n * p_.rank;
    // dx's GEMM needs scratch if it cannot write to dx itself; no other use of `wide` overlaps with it.
    int64_t wide = n * std::max(p_.d_out, p_.x ? p_.d_in : 0);
    Scratch t{Call::hidden(n),
              operand_buffer<T, G>(wide),
              buffer<G>(narrow),
              buffer<G>(wants_dh() ? narrow : 0),
              {},
              {},
              buffer<C>(wants_dh() ? narrow : 0)};
    if constexpr (!std::is_same_v<G, C>) t.dh_operand = buffer<G>(wants_dh() ? narrow : 0);
    t.weight = buffer<G>(std::max(sums_.scratch({du_, dv_, dcores_[0], dcores_[1], dcores_[2], dcores_[3]}),
                                  sums_.scratch({dfolded_[0], dfolded_[1], dfolded_[2], dfolded_[3]})));
    return t;
  }

  void block(Scratch& t, int64_t first, int64_t n, C* into, bool later) const {
    bool begun = false;
    const C* mask = nullptr;
    for (int64_t k = 0; k < p_.count; ++k) {
      if (!g_.dy[k]) continue;
      bool fresh = !begun || (p_.dropout > 0 && !p_.shared_mask);
      if (fresh) mask = Call::mask(t.hidden, first, n, k);
      projection(t, first, n, k, mask, fresh, begun, into, later);
      begun = true;
    }
    if (wants_dh()) input(t, first, n, into, later);
  }

  void projection(Scratch& t, int64_t first, int64_t n, int64_t k, const C* mask, bool fresh, bool begun, C* into,
                  bool later) const {
    int64_t rank = p_.rank;
    const G* dy = operand<T, G>(static_cast<const T*>(g_.dy[k]) + first * p_.d_out, n * p_.d_out, t.wide);
    host::Matrix from = host::matrix(dy, n, p_.d_out), dg = host::matrix(t.dg.get(), n, rank);
    const G* kept = g_.dv || g_.dcores ? Call::kept(t.hidden, first, n, mask, fresh) : nullptr;
    if (Call::folded()) {
      sums_.product(dfolded_[k], t.weight, into, later, [&](G* to, bool more) {
        gemm<G>(from.transposed(), host::matrix(kept, n, rank), host::matrix(to, p_.d_out, rank), more);
      });
      if (!wants_dh()) return;
      gemm<G>(from, Call::folded_core(k), host::matrix(t.part.get(), n, rank));
      (begun ? this->loops.take_more : this->loops.take)(t.part.get(), mask, n * rank, t.dh.get());
      return;
    }
    if (g_.dv) {
      const G* mixed = Call::mix(t.hidden, kept, n, k);
      sums_.product(dv_, t.weight, into, later || begun, [&](G* to, bool more) {
        gemm<G>(from.transposed(), host::matrix(mixed, n, rank), host::matrix(to, p_.d_out, rank), more);
      });
    }
    if (!g_.dcores && !wants_dh()) return;
    gemm<G>(from, this->v, dg);
    if (p_.diagonal) {
      if (C* to = dcores_[k].in(into)) this->loops.dots(t.dg.get(), kept, n, rank, to);
    } else {
      sums_.product(dcores_[k], t.weight, into, later, [&](G* to, bool more) {
        gemm<G>(host::matrix(kept, n, rank).transposed(), dg, host::matrix(to, rank, rank), more);
      });
    }
    if (!wants_dh()) return;
    if (p_.diagonal) {
      this->loops.scale(t.dg.get(), Call::scales(k), n, rank, t.part.get());
    } else {
      gemm<G>(dg, Call::core(k).transposed(), host::matrix(t.part.get(), n, rank));
    }
    (begun ? this->loops.take_more : this->loops.take)(t.part.get(), mask, n * rank, t.dh.get());
  }

  // What dh gives: dx and U's part, or dx alone if x came projected.
  void input(Scratch& t, int64_t first, int64_t n, C* into, bool later) const {
    if (!p_.x) {
      vectors<T, C>().narrow(t.dh.get(), n * p_.rank, static_cast<T*>(g_.dx) + first * p_.rank);
      return;
    }
    const G* dh = nullptr;
    if constexpr (std::is_same_v<G, C>) {
      dh = t.dh.get();
    } else {
      vectors<G, C>().narrow(t.dh.get(), n * p_.rank, t.dh_operand.get());
      dh = t.dh_operand.get();
    }
    host::Matrix left = host::matrix(dh, n, p_.rank);
    sums_.product(du_, t.weight, into, later, [&](G* to, bool more) {
      const G* x = operand<T, G>(static_cast<const T*>(p_.x) + first * p_.d_in, n * p_.d_in, t.wide);
      gemm<G>(left.transposed(), host::matrix(x, n, p_.d_in), host::matrix(to, p_.rank, p_.d_in), more);
    });
    if (!g_.dx) return;
    T* dx = static_cast<T*>(g_.dx) + first * p_.d_in;
    if constexpr (std::is_same_v<T, G>) {
      gemm<G>(left, this->u, host::matrix(dx, n, p_.d_in));
    } else {
      gemm<G>(left, this->u, host::matrix(t.wide.get(), n, p_.d_in));
      vectors<T, G>().narrow(t.wide.get(), n * p_.d_in, dx);
    }
  }

  // V's and the cores' gradients from those of V M_k^T, in C; a task is a run of V's rows, or a core.
  void unfold() const {
    int64_t rank = p_.rank;
    auto v = widened(p_.v, p_.d_out * rank), cores = widened(p_.cores, p_.count * rank * rank);
    auto dfolded = [&](int64_t k, int64_t row, int64_t rows) {
      return host::matrix(dfolded_values_.get() + (k * p_.d_out + row) * rank, rows, rank);
    };
    Division runs = divide(g_.dv ? p_.d_out : 0, 8, 256);
    host::parallel(runs.parts() + (g_.dcores ? p_.count : 0), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        if (int64_t k = task - runs.parts(); k >= 0) {
          C* to = static_cast<C*>(g_.dcores) + k * rank * rank;
          if (g_.dy[k])
            gemm<C>(dfolded(k, 0, p_.d_out).transposed(), host::matrix(v.get(), p_.d_out, rank),
                    host::matrix(to, rank, rank));
          continue;
        }
        int64_t row = runs.begin(task), rows = runs.begin(task + 1) - row;
        bool more = false;
        for (int64_t k = 0; k < p_.count; ++k) {
          if (!g_.dy[k]) continue;
          gemm<C>(dfolded(k, row, rows), host::matrix(cores.get() + k * rank * rank, rank, rank),
                  host::matrix(static_cast<C*>(g_.dv) + row * rank, rows, rank), more);
          more = true;
        }
      }
    });
  }
  Buffer<C> widened(const void* from, int64_t count) const {
    auto to = buffer<C>(count);
    vectors<T, G>().widen(static_cast<const T*>(from), count, to.get());
    return to;
  }

  const ModeUpdateParams& p_;
  const ModeUpdateGrads& g_;
  Buffer<C> dfolded_values_;
  SplitSums<T, G> sums_;
  Sum du_ = {}, dv_ = {}, dcores_[kMostModes] = {}, dfolded_[kMostModes] = {};
};

}  // namespace

void mode_update_bwd(const ModeUpdateParams& p, const ModeUpdateGrads& g) {
  with_types(p.dtype, [&]<class T, class G>() { Backward<T, G>(p, g).run(); });
}

}  // namespace petx::cpu
