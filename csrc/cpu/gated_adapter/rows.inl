// Row loops of the VL-PET site, compiled once per instruction set (foreach_isa.h). Each loop is one pass over a row
// of d values in registers and first-level cache; the compiler vectorises the marked loops.

template <class C>
static inline C dot(const C* a, const C* b, int64_t n) {
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += a[j] * b[j];
  return sum;
}

template <class T, class C>
static inline C dot_storage(const T* a, const C* b, int64_t n) {
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += load(a[j]) * b[j];
  return sum;
}

#include "cpu/common/dropout.inl"

// The mask of row `row`; `words` holds d + 8 values and the result lies inside it.
template <class C>
static inline const C* dropout_row(const GatedAdapterParams& p, int64_t row, C* words) {
  return dropout_mask(static_cast<uint64_t>(*p.seed), static_cast<uint64_t>(row) * p.d, p.d, p.dropout, words);
}

// The activation is a template argument, so that the branch on it stays outside the vector loops.
template <Activation kind, class T, class G, class C>
static void activate_as(const G* product, const C* bias, int64_t rows, int64_t r, T* z, G* a) {
  for (int64_t i = 0; i < rows; ++i, product += r, z += r, a += r) {
    if (bias) {
#pragma omp simd
      for (int64_t j = 0; j < r; ++j) store(z[j], load(product[j]) + bias[j]);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < r; ++j) store(z[j], C(load(product[j])));
    }
#pragma omp simd
    for (int64_t j = 0; j < r; ++j) store(a[j], gelu<kind>(C(load(z[j]))));
  }
}

template <Activation kind, class T, class G>
static void reactivate_as(const T* z, int64_t count, G* a) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) store(a[j], gelu<kind>(Compute<T>(load(z[j]))));
}

template <Activation kind, class T, class G, class C>
static void activate_bwd_as(const T* z, int64_t rows, int64_t r, G* da, C* sum) {
#pragma omp simd
  for (int64_t j = 0; j < rows * r; ++j) store(da[j], load(da[j]) * gelu_derivative<kind>(C(load(z[j]))));
  if (!sum) return;
  for (int64_t i = 0; i < rows; ++i, da += r) {
#pragma omp simd
    for (int64_t j = 0; j < r; ++j) sum[j] += load(da[j]);
  }
}

template <class T, class G, class C>
static void activate(const G* product, const C* bias, Activation activation, int64_t rows, int64_t r, T* z, G* a) {
  if (activation == Activation::gelu) return activate_as<Activation::gelu>(product, bias, rows, r, z, a);
  activate_as<Activation::gelu_tanh>(product, bias, rows, r, z, a);
}

template <class T, class G>
static void reactivate(const T* z, Activation activation, int64_t count, G* a) {
  if (activation == Activation::gelu) return reactivate_as<Activation::gelu>(z, count, a);
  reactivate_as<Activation::gelu_tanh>(z, count, a);
}

template <class T, class G, class C>
static void activate_bwd(const T* z, Activation activation, int64_t rows, int64_t r, G* da, C* sum) {
  if (activation == Activation::gelu) return activate_bwd_as<Activation::gelu>(z, rows, r, da, sum);
  activate_bwd_as<Activation::gelu_tanh>(z, rows, r, da, sum);
}

template <class T, class G, class C>
static void token_gate(const GatedAdapterBlock<T, G>& b, const G* a, C* token) {
  const GatedAdapterParams& p = *b.p;
  bool modified = p.gate_input == GateInput::modified;
  for (int64_t i = 0; i < b.rows; ++i) {
    C logit = b.v->gate_constant + dot_storage(b.x + i * p.d, b.v->gate_x, p.d);
    logit += dot_storage(b.h + i * p.d, b.v->gate_s, p.d);
    if (modified) logit += dot_storage(a + i * p.r, b.v->gate_z, p.r);
    token[i] = sigmoid(logit);
  }
}

// s = h + up + bias of row i.
template <class T, class G, class C>
static inline void modified_row(const GatedAdapterBlock<T, G>& b, int64_t i, C* s) {
  int64_t d = b.p->d;
  const T* h = b.h + i * d;
  const G* up = b.up + i * d;
  const C* bias = b.v->up_bias;
  if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) s[j] = load(h[j]) + load(up[j]) + bias[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) s[j] = load(h[j]) + load(up[j]);
  }
}

// g = sigmoid(gate product + bias) of row i.
template <class T, class G, class C>
static inline void large_gate_row(const GatedAdapterBlock<T, G>& b, int64_t i, C* g) {
  int64_t d = b.p->d;
  const G* gate = b.gate + i * d;
  const C* bias = b.v->gate_bias;
  if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) g[j] = sigmoid(C(load(gate[j])) + bias[j]);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) g[j] = sigmoid(C(load(gate[j])));
  }
}

// The scalar that multiplies row i; for channel-wise gates, s alone.
template <class T, class G, class C>
static inline C row_factor(const GatedAdapterBlock<T, G>& b, int64_t i, const C* s) {
  const GatedAdapterParams& p = *b.p;
  C factor = C(p.scale);
  if (p.granularity == Granularity::small) return factor * b.token[i];
  if (p.granularity == Granularity::middle_x) {
    C logit = b.v->gate_constant + dot_storage(b.x + i * p.d, b.v->gate_x, p.d);
    logit +=
        p.gate_input == GateInput::modified ? dot(s, b.v->gate_s, p.d) : dot_storage(b.h + i * p.d, b.v->gate_s, p.d);
    C gate = sigmoid(logit);
    static_cast<C*>(p.token_gate)[b.first + i] = gate;
    return factor * gate;
  }
  return factor;
}

template <class C>
static inline void multiply(C* y, const C* by, C factor, int64_t n) {
  if (by) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) y[j] = factor * by[j] * y[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) y[j] = factor * y[j];
  }
}

// x + dropout(Y) of row i into r, in C as the norm reads it.
template <class T, class G, class C>
static inline void add_residual(const GatedAdapterBlock<T, G>& b, int64_t i, C* r) {
  const int64_t d = b.p->d;
  if (b.skip) {
    const C* skip = b.skip + i * d;
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) r[j] += skip[j];
  }
  if (b.p->residual) {
    const T* x = b.x + i * d;
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) r[j] += load(x[j]);
  }
}

// out of row i, of the type To, from the residual stream y.
template <class To, class T, class G, class C>
static inline void finish_row(const GatedAdapterBlock<T, G>& b, int64_t i, const C* y, To* out) {
  const GatedAdapterParams& p = *b.p;
  const int64_t d = p.d;
  if (p.norm == Norm::none) {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) store(out[j], y[j]);
    return;
  }
  C mean = 0;
  if (p.norm == Norm::layer) {
#pragma omp simd reduction(+ : mean)
    for (int64_t j = 0; j < d; ++j) mean += y[j];
    mean /= C(d);
  }
  C square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t j = 0; j < d; ++j) square += (y[j] - mean) * (y[j] - mean);
  C rstd = C(1) / sqrt(square / C(d) + C(p.eps));
  C* stats = static_cast<C*>(p.norm_stats) + 2 * (b.first + i);
  stats[0] = mean, stats[1] = rstd;
  const C *weight = b.v->norm_weight, *bias = b.v->norm_bias;
  if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) store(out[j], (y[j] - mean) * rstd * weight[j] + bias[j]);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) store(out[j], (y[j] - mean) * rstd * weight[j]);
  }
}

template <class T, class G>
static void forward(const GatedAdapterBlock<T, G>& b) {
  using C = Compute<T>;
  const GatedAdapterParams& p = *b.p;
  const int64_t d = p.d;
  C *y = b.work, *g = b.work + (d + 8), *words = b.work + 2 * (d + 8);
  for (int64_t i = 0; i < b.rows; ++i) {
    modified_row(b, i, y);
    C factor = row_factor(b, i, y);
    const C* channel = b.v->channel_gate;
    if (p.granularity == Granularity::large) large_gate_row(b, i, g), channel = g;
    multiply(y, channel, factor, d);
    if (p.dropout > 0) multiply(y, dropout_row(p, b.first + i, words), C(1), d);
    add_residual(b, i, y);
    if (b.skip)
      finish_row(b, i, y, b.wide_out + i * d);
    else
      finish_row(b, i, y, b.out + i * d);
  }
}

#include "cpu/gated_adapter/rows_backward.inl"

template <class T, class G>
static GatedAdapterLoops<T, G> loops_for() {
  using C = Compute<T>;
  return {activate<T, G, C>, reactivate<T, G>,    activate_bwd<T, G, C>, token_gate<T, G, C>,
          forward<T, G>,     backward_dots<T, G>, backward<T, G>,        finish_dh<T, G>};
}
