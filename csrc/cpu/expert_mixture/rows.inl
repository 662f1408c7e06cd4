// Row loops of the expert mixture, compiled once per instruction set (foreach_isa.h). A row of K r values is computed
// in one vector loop, whatever r is: the gates are spread over it first.

template <class T, class G>
static void pre_activation(const ExpertMixtureBlock<T, G>& b, const G* product, const Compute<T>* bias,
                           const Compute<T>* gate_bias, Compute<T>* logits) {
  const ExpertMixtureParams& p = *b.p;
  const int64_t stacked = p.stacked;
  T* u = static_cast<T*>(p.u) + b.first * stacked;
  for (int64_t i = 0; i < b.rows; ++i, product += b.width, u += stacked) {
    if (bias) {
#pragma omp simd
      for (int64_t j = 0; j < stacked; ++j) store(u[j], load(product[j]) + bias[j]);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < stacked; ++j) store(u[j], load(product[j]));
    }
    if (!logits) continue;
    for (int64_t k = 0; k < p.experts; ++k)
      logits[i * p.experts + k] = load(product[stacked + k]) + (gate_bias ? gate_bias[k] : Compute<T>(0));
  }
}

// The softmax of the `top_k` largest of a row; the others are left out.
template <class C>
static inline void softmax_of_largest(C* row, int64_t experts, int64_t top_k, C most) {
  int64_t last = 0;  // the smallest that is kept
  for (int64_t k = 0; k < experts; ++k) {
    int64_t rank = 0;
    for (int64_t j = 0; j < experts; ++j) rank += taken_before(row[j], j, row[k], k);
    if (rank == top_k - 1) last = k;
  }
  C least = row[last], sum = 0;
  constexpr C kLeftOut = C(-1);
  for (int64_t k = 0; k < experts; ++k) {
    bool kept = k == last || taken_before(row[k], k, least, last);
    row[k] = kept ? exponential(row[k] - most) : kLeftOut;
    if (kept) sum += row[k];
  }
  for (int64_t k = 0; k < experts; ++k) row[k] = row[k] == kLeftOut ? gate_left_out(sum) : row[k] / sum;
}

template <class C>
static void softmax(C* logits, int64_t rows, int64_t experts, int64_t top_k) {
  for (int64_t i = 0; i < rows; ++i) {
    C* row = logits + i * experts;
    C most = row[0];
    for (int64_t k = 1; k < experts; ++k) most = row[k] > most ? row[k] : most;
    if (top_k < experts) {
      softmax_of_largest(row, experts, top_k, most);
    } else {
      for (int64_t k = 0; k < experts; ++k) row[k] -= most;
    }
  }
  if (top_k < experts) return;
#pragma omp simd
  for (int64_t j = 0; j < rows * experts; ++j) logits[j] = exponential(logits[j]);
  for (int64_t i = 0; i < rows; ++i) {
    C* row = logits + i * experts;
    C sum = 0;
    for (int64_t k = 0; k < experts; ++k) sum += row[k];
    for (int64_t k = 0; k < experts; ++k) row[k] /= sum;
  }
}

// The gates that the block's tokens read, or null for equal ones.
template <class T, class G>
static inline const Compute<T>* gates_of(const ExpertMixtureBlock<T, G>& b, int64_t i) {
  const ExpertMixtureParams& p = *b.p;
  return p.gated() ? static_cast<const Compute<T>*>(p.gates) + p.gate_row(b.first + i) * p.experts : nullptr;
}

template <class T, class G>
static inline bool in_scope(const ExpertMixtureBlock<T, G>& b, int64_t i) {
  return !b.p->scope || b.p->scope[b.first + i];
}

// scale [K r] = beta g_k of each value's expert.
template <class C>
static inline void spread(const ExpertMixtureParams& p, const C* gates, C* scale) {
  const int64_t rank = p.rank();
  for (int64_t k = 0; k < p.experts; ++k) {
    C value = C(p.beta) * gates[k];
#pragma omp simd
    for (int64_t j = 0; j < rank; ++j) scale[k * rank + j] = value;
  }
}

template <class T, class G>
static inline void spread_equal(const ExpertMixtureBlock<T, G>& b) {
  if (!b.p->gated()) std::fill_n(b.work, b.p->stacked, Compute<T>(b.p->beta) / Compute<T>(b.p->experts));
}

// The activation is a template argument, so that the branch on it stays outside the vector loops.
template <ExpertActivation kind, class T, class G>
static void hidden_as(const ExpertMixtureBlock<T, G>& b, G* hidden) {
  using C = Compute<T>;
  const ExpertMixtureParams& p = *b.p;
  const int64_t stacked = p.stacked;
  const T* u = static_cast<const T*>(p.u) + b.first * stacked;
  C* scale = b.work;
  spread_equal(b);
  for (int64_t i = 0; i < b.rows; ++i, u += stacked, hidden += b.width) {
    if (!in_scope(b, i)) {
#pragma omp simd
      for (int64_t j = 0; j < b.width; ++j) store(hidden[j], C(0));
      continue;
    }
    const C* gates = gates_of(b, i);
    if (gates) spread(p, gates, scale);
#pragma omp simd
    for (int64_t j = 0; j < stacked; ++j) store(hidden[j], scale[j] * expert_activation<kind>(C(load(u[j]))));
    for (int64_t k = 0; gates && k < p.experts; ++k) store(hidden[stacked + k], C(p.beta) * gates[k]);
  }
}

template <ExpertActivation kind, class T, class G>
static void hidden_bwd_as(const ExpertMixtureBlock<T, G>& b, G* q, Compute<T>* dgates) {
  using C = Compute<T>;
  const ExpertMixtureParams& p = *b.p;
  const int64_t stacked = p.stacked, rank = p.rank();
  const T* u = static_cast<const T*>(p.u) + b.first * stacked;
  C *scale = b.work, *along = b.work + stacked;
  spread_equal(b);
  for (int64_t i = 0; i < b.rows; ++i, u += stacked, q += b.width) {
    C* dgate = dgates + i * p.experts;
    if (!in_scope(b, i)) {
#pragma omp simd
      for (int64_t j = 0; j < b.width; ++j) store(q[j], C(0));
      if (p.gated()) std::fill_n(dgate, p.experts, C(0));
      continue;
    }
    if (const C* gates = gates_of(b, i)) {
      spread(p, gates, scale);
#pragma omp simd
      for (int64_t j = 0; j < stacked; ++j) along[j] = load(q[j]) * expert_activation<kind>(C(load(u[j])));
      for (int64_t k = 0; k < p.experts; ++k) {
        C sum = load(q[stacked + k]);
#pragma omp simd reduction(+ : sum)
        for (int64_t j = k * rank; j < (k + 1) * rank; ++j) sum += along[j];
        dgate[k] = C(p.beta) * sum;
        store(q[stacked + k], C(0));
      }
    }
    if constexpr (kind == ExpertActivation::relu) {  // what it cuts off gets zero whatever comes, as from torch's
#pragma omp simd
      for (int64_t j = 0; j < stacked; ++j) store(q[j], load(u[j]) <= C(0) ? C(0) : scale[j] * load(q[j]));
    } else {
#pragma omp simd
      for (int64_t j = 0; j < stacked; ++j)
        store(q[j], scale[j] * load(q[j]) * expert_activation_slope<kind>(C(load(u[j]))));
    }
  }
}

template <class T, class G>
static void hidden(const ExpertMixtureBlock<T, G>& b, G* hidden) {
  switch (b.p->activation) {
    case ExpertActivation::none:
      return hidden_as<ExpertActivation::none>(b, hidden);
    case ExpertActivation::relu:
      return hidden_as<ExpertActivation::relu>(b, hidden);
    case ExpertActivation::gelu:
      return hidden_as<ExpertActivation::gelu>(b, hidden);
    case ExpertActivation::gelu_tanh:
      return hidden_as<ExpertActivation::gelu_tanh>(b, hidden);
  }
}

template <class T, class G>
static void hidden_bwd(const ExpertMixtureBlock<T, G>& b, G* q, Compute<T>* dgates) {
  switch (b.p->activation) {
    case ExpertActivation::none:
      return hidden_bwd_as<ExpertActivation::none>(b, q, dgates);
    case ExpertActivation::relu:
      return hidden_bwd_as<ExpertActivation::relu>(b, q, dgates);
    case ExpertActivation::gelu:
      return hidden_bwd_as<ExpertActivation::gelu>(b, q, dgates);
    case ExpertActivation::gelu_tanh:
      return hidden_bwd_as<ExpertActivation::gelu_tanh>(b, q, dgates);
  }
}

template <class T, class G>
static void forward(const ExpertMixtureBlock<T, G>& b, const T* x, const G* product, const Compute<T>* constant,
                    T* out) {
  using C = Compute<T>;
  const int64_t d = b.p->d;
  const C alpha = C(b.p->alpha);
  for (int64_t i = 0; i < b.rows; ++i, x += d, product += d, out += d) {
    if (!in_scope(b, i)) {
      std::copy_n(x, d, out);
    } else if (constant) {
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) store(out[j], alpha * load(x[j]) + load(product[j]) + constant[j]);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) store(out[j], alpha * load(x[j]) + load(product[j]));
    }
  }
}

template <class C>
static void softmax_bwd(C* dgates, const C* gates, int64_t rows, int64_t experts) {
  for (int64_t i = 0; i < rows; ++i, dgates += experts, gates += experts) {
    C mean = 0;
    for (int64_t k = 0; k < experts; ++k) mean += gates[k] * dgates[k];
    for (int64_t k = 0; k < experts; ++k) dgates[k] = logit_grad(gates[k], dgates[k], mean);
  }
}

template <class T, class G>
static void put_logits(const ExpertMixtureBlock<T, G>& b, const Compute<T>* dlogits, G* du) {
  const int64_t experts = b.p->experts;
  for (int64_t i = 0; i < b.rows; ++i)
    for (int64_t k = 0; k < experts; ++k) store(du[i * b.width + b.p->stacked + k], dlogits[i * experts + k]);
}

template <class T, class G>
static void finish_dx(const ExpertMixtureBlock<T, G>& b, const T* dout, const G* product, T* dx) {
  using C = Compute<T>;
  const int64_t d = b.p->d;
  for (int64_t i = 0; i < b.rows; ++i, dout += d, product += d, dx += d) {
    C alpha = in_scope(b, i) ? C(b.p->alpha) : C(1);
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) store(dx[j], alpha * load(dout[j]) + load(product[j]));
  }
}

template <class G, class C>
static void column_sums(const G* from, int64_t rows, int64_t stride, int64_t count, C* sum) {
  for (int64_t i = 0; i < rows; ++i, from += stride) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) sum[j] += load(from[j]);
  }
}

template <class T, class G>
static void scope_sums(const ExpertMixtureBlock<T, G>& b, const T* dout, Compute<T>* sum) {
  for (int64_t i = 0; i < b.rows; ++i)
    if (in_scope(b, i)) column_sums(dout + i * b.p->d, 1, b.p->d, b.p->d, sum);
}

template <class T, class G>
static ExpertMixtureLoops<T, G> loops_for() {
  using C = Compute<T>;
  return {pre_activation<T, G>, softmax<C>,       hidden<T, G>,    forward<T, G>,     hidden_bwd<T, G>,
          softmax_bwd<C>,       put_logits<T, G>, finish_dx<T, G>, column_sums<G, C>, scope_sums<T, G>};
}
