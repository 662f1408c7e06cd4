// The cores of all mode vectors on the CPU, and their gradients.
//
//   M = P gate(C)^T;  dgate(C) = dM^T P;  dP = dM gate(C)     C as [R^2, R], P [n, R], M [n, R^2]
//
// A block of C's rows is gated into scratch and multiplied while it is in cache, so gate(C) never reaches memory. Sums
// over C's rows (dP and the threshold's gradient) are split as sums over tokens are (split_sums.h). A diagonal core is
// R values, for which plain loops do.

#include "kernels/mode_cores.h"

#include "cpu/common/products.h"
#include "cpu/common/split_sums.h"
#include "cpu/mode_cores/rows.h"

namespace petx::cpu {
namespace {

template <class T, class G>
class Cores {
 public:
  using C = Compute<T>;

  explicit Cores(const ModeCoresParams& p) : p_(p), rows_(core_rows<T, G>()), inverse_(C(1 / p.temperature)) {
    if constexpr (!std::is_same_v<T, G>) own_vectors_ = buffer<G>(p.modes * p.rank);
    vectors_ = host::matrix(operand(static_cast<const T*>(p.vectors), p.modes * p.rank, own_vectors_), p.modes, p.rank);
    if (!p.threshold) return;
    thresholds_ = buffer<C>(p.rank);
    for (int64_t k = 0; k < p.rank; ++k) thresholds_[k] = load(static_cast<const T*>(p.threshold)[p.each ? k : 0]);
  }

  void forward(T* cores) const {
    if (p_.diagonal) return diagonal_forward(cores);
    Division blocks = row_blocks(p_.slices(), kMostRows<G>);
    int64_t most = std::min(blocks.size, blocks.rows);
    host::parallel(blocks.parts(), [&](int64_t begin, int64_t end) {
      auto gate = gate_buffer(most), product = operand_buffer<T, G>(p_.modes * most);
      for (int64_t block = begin; block < end; ++block) {
        int64_t first = blocks.begin(block), m = blocks.begin(block + 1) - first;
        host::Matrix gated = host::matrix(gated_rows(first, m, gate), m, p_.rank).transposed();
        if constexpr (std::is_same_v<T, G>) {
          gemm<G>(vectors_, gated, columns(cores, first, m));
        } else {
          gemm<G>(vectors_, gated, host::matrix(product.get(), p_.modes, m));
          for (int64_t n = 0; n < p_.modes; ++n)
            vectors<T, G>().narrow(product.get() + n * m, m, cores + n * p_.slices() + first);
        }
      }
    });
  }

  void backward(const ModeCoresGrads& g) const {
    if (p_.diagonal) return diagonal_backward(g);
    SplitSums<T, G> sums;
    auto by_rank = buffer<C>(p_.rank);
    auto dvectors = sums.add(g.dvectors, p_.modes * p_.rank, true);
    auto dthresholds = sums.add(g.dthreshold ? by_rank.get() : nullptr, p_.rank);
    const T* dcores = static_cast<const T*>(g.dcores);
    struct Scratch {
      Buffer<G> gate, grads, product, weight;
    };
    sums.run(
        p_.slices(),
        [&](int64_t rows) {
          int64_t most = std::min(rows, kMostRows<G>);
          return Scratch{gate_buffer(most), operand_buffer<T, G>(p_.modes * most), buffer<G>(most * p_.rank),
                         buffer<G>(sums.scratch({dvectors}))};
        },
        [&](Scratch& t, int64_t begin, int64_t end, C* into) {
          each_block<G>(begin, end, [&](int64_t first, int64_t m) {
            host::Matrix grads = grad_columns(dcores, first, m, t.grads);
            sums.product(dvectors, t.weight, into, first > begin, [&](G* to, bool more) {
              gemm<G>(grads, host::matrix(gated_rows(first, m, t.gate), m, p_.rank),
                      host::matrix(to, p_.modes, p_.rank), more);
            });
            if (!g.dcore && !g.dthreshold) return;
            gemm<G>(grads.transposed(), vectors_, host::matrix(t.product.get(), m, p_.rank));
            C* dcore = g.dcore ? static_cast<C*>(g.dcore) + first * p_.rank : nullptr;
            rows_.slopes(p_.gate, core(first), thresholds_.get(), inverse_, t.product.get(), m, p_.rank, dcore,
                         dthresholds.in(into));
          });
        });
    finish(by_rank.get(), static_cast<C*>(g.dthreshold));
  }

 private:
  const T* core(int64_t row) const { return static_cast<const T*>(p_.core) + row * p_.rank; }
  bool copied() const { return !std::is_same_v<T, G> || p_.gate != Gate::none; }
  Buffer<G> gate_buffer(int64_t rows) const { return buffer<G>(copied() ? rows * p_.rank : 0); }

  const G* gated_rows(int64_t first, int64_t m, const Buffer<G>& into) const {
    if constexpr (std::is_same_v<T, G>)
      if (!copied()) return core(first);
    rows_.gate(p_.gate, core(first), thresholds_.get(), inverse_, m, p_.rank, into.get());
    return into.get();
  }

  // Columns [first, first + m) of all modes' cores as rows of R^2 values.
  host::Matrix columns(const T* cores, int64_t first, int64_t m) const {
    return host::matrix(cores + first, p_.modes, m, p_.slices());
  }
  host::Matrix grad_columns(const T* cores, int64_t first, int64_t m, const Buffer<G>& into) const {
    if constexpr (std::is_same_v<T, G>) {
      return columns(cores, first, m);
    } else {
      for (int64_t n = 0; n < p_.modes; ++n)
        vectors<T, G>().convert(cores + n * p_.slices() + first, m, into.get() + n * m);
      return host::matrix(into.get(), p_.modes, m);
    }
  }

  // The threshold's gradient from that of a threshold for each rank.
  void finish(const C* by_rank, C* to) const {
    if (!to) return;
    C sum = 0;
    for (int64_t k = 0; k < p_.rank; ++k) sum += by_rank[k];
    if (p_.each) {
      std::copy_n(by_rank, p_.rank, to);
    } else {
      *to = sum;
    }
  }

  Buffer<C> gated_weights() const {
    auto weights = buffer<C>(p_.rank);
    with_gate(p_.gate, [&]<Gate kind>() {
      for (int64_t k = 0; k < p_.rank; ++k) weights[k] = gated<kind>(C(load(*(core(0) + k))), threshold(k), inverse_);
    });
    return weights;
  }
  C threshold(int64_t k) const { return thresholds_ ? thresholds_[k] : C(0); }

  void diagonal_forward(T* cores) const {
    auto weights = gated_weights();
    const T* vectors = static_cast<const T*>(p_.vectors);
    for (int64_t n = 0; n < p_.modes; ++n)
      for (int64_t k = 0; k < p_.rank; ++k)
        store(cores[n * p_.rank + k], weights[k] * C(load(vectors[n * p_.rank + k])));
  }

  void diagonal_backward(const ModeCoresGrads& g) const {
    auto weights = gated_weights(), sums = buffer<C>(p_.rank);
    std::fill_n(sums.get(), p_.rank, C(0));
    const T *vectors = static_cast<const T*>(p_.vectors), *dcores = static_cast<const T*>(g.dcores);
    for (int64_t n = 0; n < p_.modes; ++n)
      for (int64_t k = 0; k < p_.rank; ++k) {
        int64_t i = n * p_.rank + k;
        C grad = load(dcores[i]);
        sums[k] += grad * C(load(vectors[i]));
        if (g.dvectors) static_cast<C*>(g.dvectors)[i] = grad * weights[k];
      }
    with_gate(p_.gate, [&]<Gate kind>() {
      for (int64_t k = 0; k < p_.rank; ++k) {
        GateSlopes<C> slopes = gate_slopes<kind>(C(load(*(core(0) + k))), threshold(k), inverse_);
        if (g.dcore) static_cast<C*>(g.dcore)[k] = sums[k] * slopes.value;
        sums[k] *= slopes.threshold;
      }
    });
    finish(sums.get(), static_cast<C*>(g.dthreshold));
  }

  const ModeCoresParams& p_;
  const CoreRows<T, G>& rows_;
  C inverse_;
  host::Matrix vectors_;
  Buffer<G> own_vectors_;
  Buffer<C> thresholds_;
};

}  // namespace

void mode_cores_fwd(const ModeCoresParams& p, void* cores) {
  with_types(p.dtype, [&]<class T, class G>() { Cores<T, G>(p).forward(static_cast<T*>(cores)); });
}

void mode_cores_bwd(const ModeCoresParams& p, const ModeCoresGrads& g) {
  with_types(p.dtype, [&]<class T, class G>() { Cores<T, G>(p).backward(g); });
}

}  // namespace petx::cpu
