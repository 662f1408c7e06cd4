// The backward's part of gated_adapter/rows.inl, which includes it.

// From dout of row i to scale * dY, through norm, residual and dropout; `s` is S, `channel` the channel-wise gate.
// Writes the residual's gradient to dx or dskip. dr holds the result; hat and words are scratch.
template <class T, class G, class C>
static inline void backward_tail(const GatedAdapterBlock<T, G>& b, int64_t i, const C* s, const C* channel, C factor,
                                 C* dr, C* hat, C* words) {
  const GatedAdapterParams& p = *b.p;
  const int64_t d = p.d;
  const C* mask = p.dropout > 0 ? dropout_row(p, b.first + i, words) : nullptr;
  if (b.skip) {
    const C* dout = b.wide_dout + i * d;
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) dr[j] = dout[j];
  } else {
    const T* dout = b.dout + i * d;
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) dr[j] = load(dout[j]);
  }
  if (p.norm != Norm::none) {
    const C* stats = static_cast<const C*>(p.norm_stats) + 2 * (b.first + i);
    C mean = stats[0], rstd = stats[1];
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) hat[j] = s[j];
    multiply(hat, channel, factor, d);
    if (mask) multiply(hat, mask, C(1), d);
    add_residual(b, i, hat);
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) hat[j] = (hat[j] - mean) * rstd;
    if (b.sum_norm_weight) {
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) b.sum_norm_weight[j] += dr[j] * hat[j];
    }
    if (b.sum_norm_bias) {
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) b.sum_norm_bias[j] += dr[j];
    }
    const C* weight = b.v->norm_weight;
    C along = 0, mean_part = 0;
#pragma omp simd reduction(+ : along, mean_part)
    for (int64_t j = 0; j < d; ++j) {
      dr[j] *= weight[j];
      along += dr[j] * hat[j];
      mean_part += dr[j];
    }
    along /= C(d);
    mean_part = p.norm == Norm::layer ? mean_part / C(d) : C(0);
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) dr[j] = rstd * (dr[j] - mean_part - hat[j] * along);
  }
  if (b.dskip) {
    C* dskip = b.dskip + i * d;
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) dskip[j] = dr[j];
  }
  if (b.dx) {
    T* dx = b.dx + i * p.d_x;
    if (p.residual) {
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) store(dx[j], dr[j]);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < p.d_x; ++j) store(dx[j], C(0));
    }
  }
  multiply(dr, mask, C(p.scale), d);
}

template <class T, class G>
static void backward_dots(const GatedAdapterBlock<T, G>& b) {
  using C = Compute<T>;
  const int64_t d = b.p->d;
  C *s = b.work, *dr = s + (d + 8), *hat = dr + (d + 8), *words = hat + (d + 8);
  for (int64_t i = 0; i < b.rows; ++i) {
    modified_row(b, i, s);
    backward_tail(b, i, s, static_cast<const C*>(nullptr), C(b.p->scale) * b.token[i], dr, hat, words);
    b.dot[i] = dot(dr, s, d);
  }
}

// The scalar gates: da is the logit's gradient, which x and S (or H) receive through the gate's weights.
template <class T, class G, class C>
static inline void backward_logit(const GatedAdapterBlock<T, G>& b, int64_t i, const C* s, C da, C* ds) {
  const GatedAdapterParams& p = *b.p;
  const int64_t d = p.d;
  const T *x = b.x + i * d, *h = b.h + i * d;
  bool modified = p.gate_input == GateInput::modified;
  if (modified) {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) ds[j] += da * b.v->gate_s[j];
  }
  if (b.dx) {
    T* dx = b.dx + i * d;
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) store(dx[j], load(dx[j]) + da * b.v->gate_x[j]);
  }
  if (b.sum_gate_bias) b.sum_gate_bias[0] += da;
  if (!b.sum_gate_weight) return;
  // middle_x has one weight for x + S, small one for each.
  C *sum_x = b.sum_gate_weight, *sum_s = p.granularity == Granularity::small ? sum_x + d : sum_x;
#pragma omp simd
  for (int64_t j = 0; j < d; ++j) sum_x[j] += da * load(x[j]);
  if (modified) {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) sum_s[j] += da * s[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) sum_s[j] += da * load(h[j]);
  }
}

template <class T, class G>
static void backward(const GatedAdapterBlock<T, G>& b) {
  using C = Compute<T>;
  const GatedAdapterParams& p = *b.p;
  const int64_t d = p.d;
  C *s = b.work, *ds = s + (d + 8), *g = ds + (d + 8), *words = g + (d + 8), *hat = words + (d + 8);
  for (int64_t i = 0; i < b.rows; ++i) {
    modified_row(b, i, s);
    C token = b.token ? b.token[i] : C(1);
    const C* channel = b.v->channel_gate;
    if (p.granularity == Granularity::large) large_gate_row(b, i, g), channel = g;
    backward_tail(b, i, s, channel, C(p.scale) * token, ds, hat, words);
    if (p.granularity == Granularity::large) {
      G* dgate = b.dgate + i * d;
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) {
        C dl = ds[j] * s[j] * g[j] * (C(1) - g[j]);
        store(dgate[j], dl);
        words[j] = dl;
        ds[j] *= g[j];
      }
      if (b.sum_gate_bias) {
#pragma omp simd
        for (int64_t j = 0; j < d; ++j) b.sum_gate_bias[j] += words[j];
      }
    } else if (p.granularity == Granularity::middle_y) {
      if (b.sum_gate_weight) {
#pragma omp simd
        for (int64_t j = 0; j < d; ++j) b.sum_gate_weight[j] += ds[j] * s[j];
      }
      multiply(ds, channel, C(1), d);
    } else if (b.token) {
      if (p.granularity == Granularity::middle_x) b.dlogit[i] = dot(ds, s, d) * token * (C(1) - token);
      multiply(ds, static_cast<const C*>(nullptr), token, d);
      backward_logit(b, i, s, b.dlogit[i], ds);
    }
    G* out = b.ds + i * d;
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) store(out[j], ds[j]);
    if (b.sum_up_bias) {
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) b.sum_up_bias[j] += ds[j];
    }
  }
}

template <class T, class G>
static void finish_dh(const GatedAdapterBlock<T, G>& b, const G* product, T* dh) {
  using C = Compute<T>;
  const int64_t d = b.p->d;
  bool direct = b.dlogit && b.p->gate_input == GateInput::original;
  for (int64_t i = 0; i < b.rows; ++i) {
    const G* ds = b.ds + i * d;
    const G* extra = product ? product + i * d : nullptr;
    C da = direct ? b.dlogit[i] : C(0);
    T* to = dh + i * d;
    if (direct) {
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) store(to[j], load(ds[j]) + da * b.v->gate_s[j] + (extra ? load(extra[j]) : C(0)));
    } else if (extra) {
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) store(to[j], load(ds[j]) + load(extra[j]));
    } else {
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) store(to[j], C(load(ds[j])));
    }
  }
}
