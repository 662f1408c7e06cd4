// One call of the VL-PET site on the CPU: its weights and vectors in the types the loops want, and the GEMMs
// that forward and backward share.
#pragma once

#include "cpu/common/products.h"
#include "cpu/gated_adapter/rows.h"

namespace petx::cpu {

// The row loops of (T, G) for this machine; defined in gated_adapter/loops.cpp.
template <class T, class G>
const GatedAdapterLoops<T, G>& gated_adapter_loops();

template <class T, class G>
class GatedAdapterCall {
  using C = Compute<T>;

 public:
  explicit GatedAdapterCall(const GatedAdapterParams& p) : loops(gated_adapter_loops<T, G>()), p_(p) {
    down = weight(p.down_weight, p.r, p.down_width(), down_);
    up = weight(p.up_weight, p.d, p.r / p.heads, up_);
    vectors = {};
    vectors.down_bias = vector(p.down_bias, p.r, down_bias_);
    vectors.up_bias = vector(p.up_bias, p.d, up_bias_);
    vectors.norm_weight = p.skip ? static_cast<const C*>(p.norm_weight) : vector(p.norm_weight, p.d, norm_weight_);
    vectors.norm_bias = p.skip ? static_cast<const C*>(p.norm_bias) : vector(p.norm_bias, p.d, norm_bias_);
    if (large()) {
      gate_down = weight(p.gate_down_weight, p.r_g, p.d_x, gate_down_);
      gate_up = weight(p.gate_weight, p.d, p.r_g, gate_up_);
      vectors.gate_down_bias = vector(p.gate_down_bias, p.r_g, gate_down_bias_);
      vectors.gate_bias = vector(p.gate_bias, p.d, gate_bias_);
    } else if (p.granularity == Granularity::middle_y) {
      channel_gate();
    } else if (p.granularity != Granularity::none) {
      token_gate();
    }
  }

  bool large() const { return p_.granularity == Granularity::large; }
  const T* h(int64_t row) const { return static_cast<const T*>(p_.h) + row * p_.d; }
  const T* x(int64_t row) const { return p_.x ? static_cast<const T*>(p_.x) + row * p_.d_x : nullptr; }
  const T* z(int64_t row) const { return static_cast<const T*>(p_.z) + row * p_.r; }
  const T* gate_z(int64_t row) const { return static_cast<const T*>(p_.gate_z) + row * p_.r_g; }

  // A block's rows of a kept product, which exists only if G is T.
  G* kept(void* product, int64_t row) const { return static_cast<G*>(product) + row * p_.d; }

  GatedAdapterBlock<T, G> block(int64_t first, int64_t count) const {
    GatedAdapterBlock<T, G> b = {};
    b.p = &p_, b.v = &vectors, b.first = first, b.rows = count, b.h = h(first), b.x = x(first);
    if (p_.skip) b.skip = static_cast<const C*>(p_.skip) + first * p_.d;
    return b;
  }

  const G* operand(const T* from, int64_t count, const Buffer<G>& into) const {
    return cpu::operand<T, G>(from, count, into);
  }
  Buffer<G> operand_buffer(int64_t count) const { return cpu::operand_buffer<T, G>(count); }

  // out [n, d] = a [n, r] times the up projection, head by head.
  void up_product(const G* a, int64_t n, G* out) const {
    for (int64_t head = 0; head < p_.heads; ++head)
      gemm<G>(rank_columns(a, n, head), head_rows(up, head).transposed(), wide_columns(out, n, head));
  }
  // da [n, r] = ds [n, d] times the up projection's transpose.
  void up_product_bwd(const G* ds, int64_t n, G* da) const {
    for (int64_t head = 0; head < p_.heads; ++head)
      gemm<G>(wide_columns(ds, n, head), head_rows(up, head), rank_columns(da, n, head));
  }
  // out [d, r / heads] = ds^T a.
  void up_weight_grad(const G* ds, const G* a, int64_t n, G* out, bool accumulate) const {
    for (int64_t head = 0; head < p_.heads; ++head)
      gemm<G>(wide_columns(ds, n, head).transposed(), rank_columns(a, n, head), head_rows(up.with_data(out), head),
              accumulate);
  }

  // small: each row's gate is its sample's mean of token gates, summed in token order.
  Buffer<C> sample_gates(const C* token) const {
    auto gates = buffer<C>(p_.rows);
    for (int64_t first = 0; first < p_.rows; first += p_.length) {
      C sum = 0;
      for (int64_t i = first; i < first + p_.length; ++i) sum += counts(i) ? token[i] : C(0);
      std::fill_n(gates.get() + first, p_.length, sum / sample_size(first));
    }
    return gates;
  }
  bool counts(int64_t row) const { return !p_.mask || p_.mask[row]; }
  C sample_size(int64_t first) const {
    if (!p_.mask) return C(p_.length);
    return C(std::max<int64_t>(1, std::count(p_.mask + first, p_.mask + first + p_.length, true)));
  }

  const GatedAdapterLoops<T, G>& loops;
  host::Matrix down, up, gate_down, gate_up;
  GatedAdapterVectors<C> vectors;

 private:
  host::Matrix weight(const void* from, int64_t out, int64_t in, Buffer<G>& own) {
    const T* data = static_cast<const T*>(from);
    if constexpr (!std::is_same_v<T, G>) own = buffer<G>(out * in);
    return host::matrix(operand(data, out * in, own), out, in);
  }
  const C* vector(const void* from, int64_t count, Buffer<C>& own) {
    if (!from) return nullptr;
    own = buffer<C>(count);
    cpu::vectors<T, G>().widen(static_cast<const T*>(from), count, own.get());
    return own.get();
  }

  void channel_gate() {
    vector(p_.gate_weight, p_.d, gate_vector_);
    for (int64_t j = 0; j < p_.d; ++j) {
      C z = gate_vector_[j];
      gate_vector_[j] = C(1) + (p_.middle_y == MiddleY::linear ? z : sigmoid(z));
    }
    vectors.channel_gate = gate_vector_.get();
  }

  void token_gate() {
    bool small = p_.granularity == Granularity::small;
    vectors.gate_x = vector(p_.gate_weight, small ? 2 * p_.d : p_.d, gate_vector_);
    vectors.gate_s = vectors.gate_x + (small ? p_.d : 0);
    const C* bias = vector(p_.gate_bias, 1, gate_bias_);
    vectors.gate_constant = bias ? bias[0] : C(0);
    if (!small || p_.gate_input == GateInput::original) return;
    // gate_s . S = gate_s . h + (up^T gate_s) . a + gate_s . up_bias
    gate_z_ = buffer<C>(p_.r);
    std::fill_n(gate_z_.get(), p_.r, C(0));
    const G* u = static_cast<const G*>(up.data);
    int64_t rank = p_.r / p_.heads, width = p_.d / p_.heads;
    for (int64_t j = 0; j < p_.d; ++j)
      for (int64_t k = 0; k < rank; ++k) gate_z_[j / width * rank + k] += load(u[j * rank + k]) * vectors.gate_s[j];
    vectors.gate_z = gate_z_.get();
    for (int64_t j = 0; vectors.up_bias && j < p_.d; ++j)
      vectors.gate_constant += vectors.gate_s[j] * vectors.up_bias[j];
  }

  host::Matrix rank_columns(const G* a, int64_t n, int64_t head) const {
    return host::matrix(a + head * (p_.r / p_.heads), n, p_.r / p_.heads, p_.r);
  }
  host::Matrix wide_columns(const G* s, int64_t n, int64_t head) const {
    return host::matrix(s + head * (p_.d / p_.heads), n, p_.d / p_.heads, p_.d);
  }
  host::Matrix head_rows(const host::Matrix& u, int64_t head) const {
    int64_t width = p_.d / p_.heads;
    return host::matrix(static_cast<const G*>(u.data) + head * width * u.cols, width, u.cols);
  }

  const GatedAdapterParams& p_;
  Buffer<G> down_, up_, gate_down_, gate_up_;
  Buffer<C> down_bias_, up_bias_, gate_down_bias_, gate_bias_, gate_vector_, gate_z_, norm_weight_, norm_bias_;
};

}  // namespace petx::cpu
