// PETAL's update on the CPU: which blocks, which GEMMs, in what order.
//
// A block of rows goes from x to its K results while it is in cache: x U^T once, then for each projection the mask, the
// core and V. Nothing of width d_out but the results reaches memory, and each of them once.

#include "cpu/mode_update/call.h"

namespace petx::cpu {
namespace {

template <class T, class G>
class Forward : ModeUpdateCall<T, G> {
  using Call = ModeUpdateCall<T, G>;
  using typename Call::C;

 public:
  Forward(const ModeUpdateParams& p, const ModeUpdateOutputs& out) : Call(p), p_(p), out_(out) {}

  void run() const {
    Division blocks = row_blocks(p_.rows, kMostRows<G>);
    int64_t most = std::min(blocks.size, blocks.rows);
    host::parallel(blocks.parts(), [&](int64_t begin, int64_t end) {
      Scratch t{Call::hidden(most), operand_buffer<T, G>(p_.x ? most * p_.d_in : 0),
                operand_buffer<T, G>(most * p_.d_out)};
      for (int64_t block = begin; block < end; ++block) {
        int64_t first = blocks.begin(block), n = blocks.begin(block + 1) - first;
        if (p_.x) project(t, first, n);
        const C* mask = nullptr;
        for (int64_t k = 0; k < p_.count; ++k) update(t, first, n, k, mask);
      }
    });
  }

 private:
  struct Scratch {
    typename Call::Hidden hidden;
    Buffer<G> x, product;
  };

  // h = x U^T, rounded to storage before anything reads it, as the backward will find it.
  void project(const Scratch& t, int64_t first, int64_t n) const {
    const G* x = operand<T, G>(static_cast<const T*>(p_.x) + first * p_.d_in, n * p_.d_in, t.x);
    T* h = static_cast<T*>(p_.h) + first * p_.rank;
    G* to = nullptr;
    if constexpr (std::is_same_v<T, G>) {
      to = h;
    } else {
      to = t.hidden.mixed.get();
    }
    gemm<G>(host::matrix(x, n, p_.d_in), this->u.transposed(), host::matrix(to, n, p_.rank));
    if constexpr (!std::is_same_v<T, G>) vectors<T, G>().narrow(to, n * p_.rank, h);
  }

  // `mask` is the one of the projection before, which may be this one's too.
  void update(const Scratch& t, int64_t first, int64_t n, int64_t k, const C*& mask) const {
    bool fresh = k == 0 || (p_.dropout > 0 && !p_.shared_mask);
    if (fresh) mask = Call::mask(t.hidden, first, n, k);
    const G* kept = Call::kept(t.hidden, first, n, mask, fresh);
    bool folded = Call::folded();
    host::Matrix left = host::matrix(folded ? kept : Call::mix(t.hidden, kept, n, k), n, p_.rank);
    host::Matrix right = (folded ? Call::folded_core(k) : this->v).transposed();
    const T* base = static_cast<const T*>(out_.base[k]);
    T* y = static_cast<T*>(out_.y[k]) + first * p_.d_out;
    if (base) base += first * out_.base_stride;
    if constexpr (std::is_same_v<T, G>) {
      if (base) copy(base, n, y);
      gemm<G>(left, right, host::matrix(y, n, p_.d_out), base != nullptr);
    } else {
      gemm<G>(left, right, host::matrix(t.product.get(), n, p_.d_out));
      if (base) {
        this->loops.add(base, out_.base_stride, t.product.get(), n, p_.d_out, y);
      } else {
        vectors<T, G>().narrow(t.product.get(), n * p_.d_out, y);
      }
    }
  }

  void copy(const T* base, int64_t n, T* y) const {
    bool dense = out_.base_stride == p_.d_out;
    int64_t count = dense ? n * p_.d_out : p_.d_out;
    for (int64_t i = 0; i < (dense ? 1 : n); ++i) std::copy_n(base + i * out_.base_stride, count, y + i * count);
  }

  const ModeUpdateParams& p_;
  const ModeUpdateOutputs& out_;
};

}  // namespace

void mode_update_fwd(const ModeUpdateParams& p, const ModeUpdateOutputs& out) {
  with_types(p.dtype, [&]<class T, class G>() { Forward<T, G>(p, out).run(); });
}

}  // namespace petx::cpu
