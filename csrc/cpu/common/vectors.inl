// Loops over a vector's values that every operation needs, compiled once per instruction set (foreach_isa.h).

template <class From, class To>
static void convert(const From* from, int64_t count, To* to) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) store(to[j], load(from[j]));
}

template <class T, class G>
static void add(const G* product, int64_t count, T* to) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) store(to[j], load(to[j]) + load(product[j]));
}

template <class G, class C>
static void accumulate(const G* part, int64_t count, C* to) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) to[j] += load(part[j]);
}

template <class C>
static void reduce(const C* from, int64_t parts, int64_t stride, int64_t count, bool more, C* to) {
  if (more) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      C sum = to[j];
      for (int64_t k = 0; k < parts; ++k) sum += from[k * stride + j];
      to[j] = sum;
    }
    return;
  }
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    C sum = from[j];
    for (int64_t k = 1; k < parts; ++k) sum += from[k * stride + j];
    to[j] = sum;
  }
}

template <class T, class G>
static Vectors<T, G> loops_for() {
  using C = Compute<T>;
  return {convert<T, C>, convert<T, G>, convert<G, T>, add<T, G>, accumulate<G, C>, reduce<C>};
}
