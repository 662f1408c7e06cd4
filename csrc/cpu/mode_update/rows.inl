// Row loops of mode_update, compiled once per instruction set (foreach_isa.h).

#include "cpu/common/dropout.inl"

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
static void mode_add(const T* base, int64_t stride, const G* product, int64_t rows, int64_t width, T* y) {
  if (stride == width) width *= rows, rows = 1;
  for (int64_t i = 0; i < rows; ++i, base += stride, product += width, y += width) {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) store(y[j], load(base[j]) + load(product[j]));
  }
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

template <class T, class G>
static ModeUpdateLoops<T, G> loops_for() {
  using C = Compute<T>;
  return {dropout_mask<C>,        mode_keep<T, G, C>,    mode_scale<G, C>, mode_add<T, G>,
          mode_take<false, G, C>, mode_take<true, G, C>, mode_dots<G, C>};
}
