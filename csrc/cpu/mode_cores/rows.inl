// Row loops of mode_cores, compiled once per instruction set (foreach_isa.h).

template <Gate kind, class T, class G, class C>
static void gate_as(const T* core, const C* thresholds, C inverse, int64_t rows, int64_t rank, G* to) {
  for (int64_t i = 0; i < rows; ++i, core += rank, to += rank) {
#pragma omp simd
    for (int64_t k = 0; k < rank; ++k)
      store(to[k], gated<kind>(C(load(core[k])), kind == Gate::none ? C(0) : thresholds[k], inverse));
  }
}

template <class T, class G, class C>
static void gate_rows(Gate gate, const T* core, const C* thresholds, C inverse, int64_t rows, int64_t rank, G* to) {
  with_gate(gate, [&]<Gate kind>() { gate_as<kind>(core, thresholds, inverse, rows, rank, to); });
}

// The gradient that a slope lets through; what a soft threshold cuts off gets zero whatever comes, as torch's relu.
template <Gate kind, class C>
static inline C passed(C grad, C slope, C value) {
  return kind == Gate::soft && slope == C(0) && value == value ? C(0) : grad * slope;
}

template <Gate kind, class T, class G, class C>
static void slopes_as(const T* core, const C* thresholds, C inverse, const G* grad, int64_t rows, int64_t rank,
                      C* dcore, C* dthresholds) {
  for (int64_t i = 0; i < rows; ++i, core += rank, grad += rank) {
    if (dcore) {
#pragma omp simd
      for (int64_t k = 0; k < rank; ++k)
        dcore[i * rank + k] =
            passed<kind>(C(load(grad[k])),
                         gate_slopes<kind>(C(load(core[k])), kind == Gate::none ? C(0) : thresholds[k], inverse).value,
                         C(load(core[k])));
    }
    if (kind != Gate::none && dthresholds) {
#pragma omp simd
      for (int64_t k = 0; k < rank; ++k)
        dthresholds[k] += passed<kind>(
            C(load(grad[k])), gate_slopes<kind>(C(load(core[k])), thresholds[k], inverse).threshold, C(load(core[k])));
    }
  }
}

template <class T, class G, class C>
static void slope_rows(Gate gate, const T* core, const C* thresholds, C inverse, const G* grad, int64_t rows,
                       int64_t rank, C* dcore, C* dthresholds) {
  with_gate(gate,
            [&]<Gate kind>() { slopes_as<kind>(core, thresholds, inverse, grad, rows, rank, dcore, dthresholds); });
}

template <class T, class G>
static ModeCoresLoops<T, G> loops_for() {
  using C = Compute<T>;
  return {gate_rows<T, G, C>, slope_rows<T, G, C>};
}
