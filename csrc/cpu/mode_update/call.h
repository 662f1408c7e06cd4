// One call of mode_update on the CPU: its factors in the types the GEMMs want, and what forward and backward
// compute alike for a block of rows.
//
// Applying M_k per token costs N R^2 multiply-adds; folding it into V (V M_k^T) costs d_out R^2 once per call instead,
// and so do the backward's three R x R products. So the cores are folded if N > 2 d_out: about 5 % of the time at
// PETAL's sizes.
#pragma once

#include "cpu/common/products.h"
#include "cpu/mode_update/rows.h"
#include "kernels/mode_update.h"

namespace petx::cpu {

template <class T, class G>
class ModeUpdateCall {
 public:
  using C = Compute<T>;

  explicit ModeUpdateCall(const ModeUpdateParams& p) : loops(mode_update_loops<T, G>()), p_(p) {
    if (p.u) u = matrix(p.u, p.rank, p.d_in, u_);
    v = matrix(p.v, p.d_out, p.rank, v_);
    const T* cores = static_cast<const T*>(p.cores);
    if (p.diagonal) {
      scales_ = buffer<C>(p.count * p.rank);
      vectors<T, G>().widen(cores, p.count * p.rank, scales_.get());
    } else {
      cores_ = matrix(cores, p.count * p.rank, p.rank, own_cores_);
      if (folded()) fold();
    }
  }

  bool folded() const { return !p_.diagonal && p_.rows > 2 * p_.d_out; }
  // V M_k^T [d_out, R], if the cores are folded.
  host::Matrix folded_core(int64_t k) const {
    return host::matrix(folded_.get() + k * p_.d_out * p_.rank, p_.d_out, p_.rank);
  }

  // M_k [R, R].
  host::Matrix core(int64_t k) const {
    return host::matrix(static_cast<const G*>(cores_.data) + k * p_.rank * p_.rank, p_.rank, p_.rank);
  }
  const C* scales(int64_t k) const { return scales_.get() + k * p_.rank; }
  const T* h(int64_t row) const { return static_cast<const T*>(p_.h) + row * p_.rank; }

  // Scratch for the masks and the masked h of a block of at most `most` rows.
  struct Hidden {
    Buffer<G> kept, mixed;
    Buffer<C> words;
  };
  Hidden hidden(int64_t most) const {
    bool own = p_.dropout > 0 || !std::is_same_v<T, G>;
    return {buffer<G>(own ? most * p_.rank : 0), buffer<G>(most * p_.rank),
            buffer<C>(p_.dropout > 0 ? most * p_.rank + 8 : 0)};
  }

  // The mask of projection k for a block, null without dropout; computed once if all share it.
  const C* mask(const Hidden& t, int64_t first, int64_t n, int64_t k) const {
    if (p_.dropout <= 0) return nullptr;
    return loops.mask(static_cast<uint64_t>(*p_.seed), p_.mask_begin(k) + first * p_.rank, n * p_.rank, p_.dropout,
                      t.words.get());
  }
  // drop_k(h) of a block; `fresh` if mask or block differ from the last call's.
  const G* kept(const Hidden& t, int64_t first, int64_t n, const C* mask, bool fresh) const {
    if (!mask) return fresh ? operand<T, G>(h(first), n * p_.rank, t.kept) : in_place(first, t);
    if (fresh) loops.keep(h(first), mask, n * p_.rank, t.kept.get());
    return t.kept.get();
  }
  // g_k = kept M_k.
  const G* mix(const Hidden& t, const G* kept, int64_t n, int64_t k) const {
    if (p_.diagonal) {
      loops.scale(kept, scales(k), n, p_.rank, t.mixed.get());
    } else {
      gemm<G>(host::matrix(kept, n, p_.rank), core(k), host::matrix(t.mixed.get(), n, p_.rank));
    }
    return t.mixed.get();
  }

  const ModeUpdateLoops<T, G>& loops;
  host::Matrix u, v;

 private:
  host::Matrix matrix(const void* from, int64_t n, int64_t width, Buffer<G>& own) {
    if constexpr (!std::is_same_v<T, G>) own = buffer<G>(n * width);
    return host::matrix(operand(static_cast<const T*>(from), n * width, own), n, width);
  }
  void fold() {
    folded_ = buffer<G>(p_.count * p_.d_out * p_.rank);
    host::parallel(p_.count, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) gemm<G>(v, core(k).transposed(), folded_core(k));
    });
  }
  const G* in_place(int64_t first, const Hidden& t) const {
    if constexpr (std::is_same_v<T, G>) return h(first);
    return t.kept.get();
  }

  const ModeUpdateParams& p_;
  host::Matrix cores_ = {};
  Buffer<G> u_, v_, own_cores_, folded_;
  Buffer<C> scales_;
};

}  // namespace petx::cpu
