// Backward of the VL-PET site on the CPU.
//
// Row-local work (dh, dx) needs no order; gradients of parameters are sums over tokens (split_sums.h). A block's
// gelu(z) is rebuilt from the saved z, and S and the gate, unless the forward kept their products.

#include "cpu/common/split_sums.h"
#include "cpu/gated_adapter/call.h"

namespace petx::cpu {
namespace {

template <class T, class G>
class Backward {
  using C = Compute<T>;

 public:
  Backward(const GatedAdapterParams& p, const GatedAdapterGrads& g) : p_(p), g_(g), call_(p) {
    int64_t gate_count = p.granularity == Granularity::large   ? p.d * p.r_g
                         : p.granularity == Granularity::small ? 2 * p.d
                                                               : p.d;
    down_weight_ = sums_.add(g.down_weight, p.r * p.down_width(), true);
    down_bias_ = sums_.add(g.down_bias, p.r);
    up_weight_ = sums_.add(g.up_weight, p.d * (p.r / p.heads), true);
    up_bias_ = sums_.add(g.up_bias, p.d);
    gate_down_weight_ = sums_.add(g.gate_down_weight, p.r_g * p.d_x, true);
    gate_down_bias_ = sums_.add(g.gate_down_bias, p.r_g);
    gate_weight_ = sums_.add(g.gate_weight, gate_count, call_.large());
    gate_bias_ = sums_.add(g.gate_bias, call_.large() ? p.d : 1);
    norm_weight_ = sums_.add(g.norm_weight, p.d);
    norm_bias_ = sums_.add(g.norm_bias, p.d);
  }

  void run() {
    if (p_.granularity == Granularity::middle_x) token_ = static_cast<const C*>(p_.token_gate);
    if (p_.granularity == Granularity::small) logit_grads();
    sums_.run(
        p_.rows, [&](int64_t rows) { return scratch(rows); },
        [&](Scratch& t, int64_t begin, int64_t end, C* into) {
          each_block<G>(begin, end, [&](int64_t row, int64_t rows) { block(t, row, rows, into, row > begin); });
        });
    finish();
  }

 private:
  using Sum = typename SplitSums<T, G>::Sum;
  struct Scratch {
    Buffer<G> in, x, a, da, gate_a, up, gate, ds, dgate, weight;
    Buffer<C> work, dlogit;
  };

  Scratch scratch(int64_t rows) const {
    int64_t n = std::min({rows, p_.rows, kMostRows<G>}), wide = n * std::max(p_.d, p_.d_x),
            large = call_.large() ? n : 0;
    int64_t weight = sums_.scratch({down_weight_, up_weight_, gate_down_weight_, gate_weight_});
    return {call_.operand_buffer(wide), call_.operand_buffer(large * p_.d_x),
            buffer<G>(n * p_.r),        buffer<G>(n * std::max(p_.r, p_.r_g)),
            buffer<G>(large * p_.r_g),  buffer<G>(wide),
            buffer<G>(large * p_.d),    buffer<G>(n * p_.d),
            buffer<G>(large * p_.d),    buffer<G>(weight),
            buffer<C>(5 * (p_.d + 8)),  buffer<C>(n)};
  }

  // a = gelu(z), the up product and the gate's product of a block, recomputed unless the forward kept them.
  GatedAdapterBlock<T, G> rebuild(Scratch& t, int64_t first, int64_t n) const {
    GatedAdapterBlock<T, G> b = call_.block(first, n);
    call_.loops.reactivate(call_.z(first), p_.activation, n * p_.r, t.a.get());
    b.up = p_.up_product ? call_.kept(p_.up_product, first) : t.up.get();
    if (!p_.up_product) call_.up_product(t.a.get(), n, t.up.get());
    if (call_.large()) {
      call_.loops.reactivate(call_.gate_z(first), p_.activation, n * p_.r_g, t.gate_a.get());
      b.gate = p_.gate_product ? call_.kept(p_.gate_product, first) : t.gate.get();
      if (!p_.gate_product)
        gemm<G>(host::matrix(t.gate_a.get(), n, p_.r_g), call_.gate_up.transposed(),
                host::matrix(t.gate.get(), n, p_.d));
    }
    b.work = t.work.get();
    b.token = token_ ? token_ + first : nullptr;
    if (p_.skip)
      b.wide_dout = static_cast<const C*>(g_.dout) + first * p_.d;
    else
      b.dout = static_cast<const T*>(g_.dout) + first * p_.d;
    return b;
  }

  // small: the gate's gradient is a sum over its sample, so it comes first, from a pass of its own.
  void logit_grads() {
    const C* sigma = static_cast<const C*>(p_.token_gate);
    sample_gate_ = call_.sample_gates(sigma);
    token_ = sample_gate_.get();
    dlogit_ = buffer<C>(p_.rows);
    Division blocks = row_blocks(p_.rows, kMostRows<G>);
    host::parallel(blocks.parts(), [&](int64_t begin, int64_t end) {
      Scratch t = scratch(blocks.size);
      for (int64_t block = begin; block < end; ++block) {
        GatedAdapterBlock<T, G> b = rebuild(t, blocks.begin(block), blocks.begin(block + 1) - blocks.begin(block));
        b.dot = dlogit_.get() + b.first;
        call_.loops.backward_dots(b);
      }
    });
    for (int64_t first = 0; first < p_.rows; first += p_.length) {
      C total = 0;
      for (int64_t i = first; i < first + p_.length; ++i) total += dlogit_[i];
      C mean = total / call_.sample_size(first);
      for (int64_t i = first; i < first + p_.length; ++i)
        dlogit_[i] = call_.counts(i) ? mean * sigma[i] * (C(1) - sigma[i]) : C(0);
    }
  }

  void block(Scratch& t, int64_t first, int64_t n, C* into, bool more) const {
    GatedAdapterBlock<T, G> b = rebuild(t, first, n);
    T* dx = g_.dx ? static_cast<T*>(g_.dx) + first * p_.d_x : nullptr;
    b.ds = t.ds.get(), b.dgate = t.dgate.get(), b.dx = dx;
    if (g_.skip) b.dskip = static_cast<C*>(g_.skip) + first * p_.d;
    if (token_) b.dlogit = dlogit_ ? dlogit_.get() + first : t.dlogit.get();
    b.sum_up_bias = up_bias_.in(into);
    b.sum_gate_bias = gate_bias_.in(into);
    b.sum_gate_weight = call_.large() ? nullptr : gate_weight_.in(into);
    b.sum_norm_weight = norm_weight_.in(into);
    b.sum_norm_bias = norm_bias_.in(into);
    call_.loops.backward(b);
    adapter(t, b, n, dx, into, more);
    if (call_.large()) gate(t, b, n, dx, into, more);
  }

  void adapter(Scratch& t, const GatedAdapterBlock<T, G>& b, int64_t n, T* dx, C* into, bool more) const {
    bool parallel = p_.reads_x_in_down();
    T* dh = g_.dh ? static_cast<T*>(g_.dh) + b.first * p_.d : nullptr;
    sums_.product(up_weight_, t.weight, into, more,
                  [&](G* to, bool add) { call_.up_weight_grad(t.ds.get(), t.a.get(), n, to, add); });
    call_.up_product_bwd(t.ds.get(), n, t.da.get());
    G* dz = t.da.get();
    call_.loops.activate_bwd(call_.z(b.first), p_.activation, n, p_.r, dz, down_bias_.in(into));
    sums_.product(down_weight_, t.weight, into, more, [&](G* to, bool add) {
      const G* in = parallel ? call_.operand(b.x, n * p_.d_x, t.in) : call_.operand(b.h, n * p_.d, t.in);
      gemm<G>(host::matrix(dz, n, p_.r).transposed(), host::matrix(in, n, p_.down_width()),
              host::matrix(to, p_.r, p_.down_width()), add);
    });
    G* product = nullptr;
    if (parallel ? dx != nullptr : dh != nullptr) {
      product = t.up.get();
      gemm<G>(host::matrix(dz, n, p_.r), call_.down, host::matrix(product, n, p_.down_width()));
    }
    if (dh) call_.loops.finish_dh(b, parallel ? nullptr : product, dh);
    if (parallel && dx) vectors<T, G>().add(product, n * p_.d_x, dx);
  }

  void gate(Scratch& t, const GatedAdapterBlock<T, G>& b, int64_t n, T* dx, C* into, bool more) const {
    sums_.product(gate_weight_, t.weight, into, more, [&](G* to, bool add) {
      gemm<G>(host::matrix(t.dgate.get(), n, p_.d).transposed(), host::matrix(t.gate_a.get(), n, p_.r_g),
              host::matrix(to, p_.d, p_.r_g), add);
    });
    if (!dx && !gate_down_weight_.to && !gate_down_bias_.to) return;
    G* dz = t.da.get();
    gemm<G>(host::matrix(t.dgate.get(), n, p_.d), call_.gate_up, host::matrix(dz, n, p_.r_g));
    call_.loops.activate_bwd(call_.gate_z(b.first), p_.activation, n, p_.r_g, dz, gate_down_bias_.in(into));
    sums_.product(gate_down_weight_, t.weight, into, more, [&](G* to, bool add) {
      gemm<G>(host::matrix(dz, n, p_.r_g).transposed(), host::matrix(call_.operand(b.x, n * p_.d_x, t.x), n, p_.d_x),
              host::matrix(to, p_.r_g, p_.d_x), add);
    });
    if (!dx) return;
    gemm<G>(host::matrix(dz, n, p_.r_g), call_.gate_down, host::matrix(t.up.get(), n, p_.d_x));
    vectors<T, G>().add(t.up.get(), n * p_.d_x, dx);
  }

  void finish() const {
    if (p_.granularity == Granularity::middle_y && p_.middle_y == MiddleY::sigmoid && gate_weight_.to) {
      C* to = static_cast<C*>(gate_weight_.to);
      for (int64_t j = 0; j < p_.d; ++j) {
        C sigma = call_.vectors.channel_gate[j] - C(1);
        to[j] *= sigma * (C(1) - sigma);
      }
    }
  }

  const GatedAdapterParams& p_;
  const GatedAdapterGrads& g_;
  GatedAdapterCall<T, G> call_;
  const C* token_ = nullptr;
  Buffer<C> sample_gate_, dlogit_;
  SplitSums<T, G> sums_;
  Sum down_weight_, down_bias_, up_weight_, up_bias_, gate_down_weight_, gate_down_bias_, gate_weight_, gate_bias_;
  Sum norm_weight_, norm_bias_;
};

}  // namespace

// With no rows the caller's gradients are zeros already.
void gated_adapter_bwd(const GatedAdapterParams& p, const GatedAdapterGrads& g) {
  if (p.rows == 0) return;
  with_types(p.dtype, [&]<class T, class G>() { Backward<T, G>(p, g).run(); });
}

}  // namespace petx::cpu
