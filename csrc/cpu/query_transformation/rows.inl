// Row loops of query_transformation, compiled once per instruction set (foreach_isa.h).

template <class T, class C>
static void transform_rows(const T* x, int64_t x_stride, const T* to, int64_t to_stride, const C* scale, const C* shift,
                           int64_t rows, int64_t width, T* y) {
  for (int64_t i = 0; i < rows; ++i, x += x_stride, y += width) {
    if (to) {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) store(y[j], load(to[j]) + (load(x[j]) * scale[j] + shift[j]));
      to += to_stride;
    } else {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) store(y[j], load(x[j]) * scale[j] + shift[j]);
    }
  }
}

// `sums`: both are wanted, as in training; then a row is read once.
template <bool sums, class T, class C>
static void gradient_row(const T* dout, const T* x, const C* scale, int64_t width, T* dx, C* dscale, C* dshift) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const C grad = load(dout[j]);
    store(dx[j], grad * scale[j]);
    if (sums) dscale[j] += grad * load(x[j]), dshift[j] += grad;
  }
}

template <class T, class C>
static void gradient_rows(const T* dout, int64_t dout_stride, const T* x, int64_t x_stride, const C* scale,
                          int64_t rows, int64_t width, T* dx, C* dscale, C* dshift) {
  for (int64_t i = 0; i < rows; ++i, dout += dout_stride, x += x_stride) {
    T* to = dx ? dx + i * width : nullptr;
    if (to && dscale && dshift) {
      gradient_row<true>(dout, x, scale, width, to, dscale, dshift);
      continue;
    }
    if (to) gradient_row<false>(dout, x, scale, width, to, dscale, dshift);
    if (dscale) {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) dscale[j] += C(load(dout[j])) * load(x[j]);
    }
    if (dshift) {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) dshift[j] += load(dout[j]);
    }
  }
}

template <class T, class G>
static QueryTransformationLoops<T, G> loops_for() {
  using C = Compute<T>;
  return {transform_rows<T, C>, gradient_rows<T, C>};
}
