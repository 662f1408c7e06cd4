// Row loops of mode_update, compiled once per instruction set (foreach_isa.h).

template <class C>
static const C* mode_mask(uint64_t seed, uint64_t first, int64_t count, double dropout, C* words) {
  uint64_t begin = first / 4, counters = (first + count + 3) / 4 - begin;
  uint32_t threshold = dropout_threshold(dropout);
  C keep = C(1.0 / (1.0 - dropout));
#pragma omp simd
  for (uint64_t k = 0; k < counters; ++k) {
    Philox4 random = philox(seed, begin + k);
    words[4 * k + 0] = (random.word[0] >> 8) >= threshold ? keep : C(0);
    words[4 * k + 1] = (random.word[1] >> 8) >= threshold ? keep : C(0);
    words[4 * k + 2] = (random.word[2] >> 8) >= threshold ? keep : C(0);
    words[4 * k + 3] = (random.word[3] >> 8) >= threshold ? keep : C(0);
  }
  return words + (first - 4 * begin);
}

template <class T, class G, class C>
static void mode_keep(const T* h, const C* mask, int64_t count, G* to) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) store(to[j], load(h[j]) * mask[j]);
}

template <class G, class C>
static void mode_scale(const G* from, const C* scales, int64_t rows, int64_t rank, G* to) {
  for (int64_t i = 0; i < rows; ++i, from += rank, to += rank) {
#pragma omp simd
    for (int64_t j = 0; j < rank; ++j) store(to[j], load(from[j]) * scales[j]);
  }
}

template <class T, class G>
static void mode_add(const T* base, const G* product, int64_t count, T* y) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) store(y[j], load(base[j]) + load(product[j]));
}

template <bool more, class G, class C>
static void mode_take(const G* part, const C* mask, int64_t count, C* sum) {
  if (mask) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) sum[j] = (more ? sum[j] : C(0)) + load(part[j]) * mask[j];
  } else {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) sum[j] = (more ? sum[j] : C(0)) + load(part[j]);
  }
}

template <class G, class C>
static void mode_dots(const G* a, const G* b, int64_t rows, int64_t rank, C* sum) {
  for (int64_t i = 0; i < rows; ++i, a += rank, b += rank) {
#pragma omp simd
    for (int64_t j = 0; j < rank; ++j) sum[j] += load(a[j]) * load(b[j]);
  }
}

template <class From, class To>
static void mode_convert(const From* from, int64_t count, To* to) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) store(to[j], load(from[j]));
}

template <class T, class G>
static ModeRows<T, G> mode_rows_for() {
  using C = Compute<T>;
  return {mode_mask<C>,          mode_keep<T, G, C>, mode_scale<G, C>,   mode_add<T, G>,    mode_take<false, G, C>,
          mode_take<true, G, C>, mode_dots<G, C>,    mode_convert<C, T>, mode_convert<C, G>};
}
