// Loops of cp_reconstruct_rows.h, compiled once per instruction set (foreach_isa.h).

template <Gate kind, class T, class C>
static void reconstruct_forward_as(const T* weight, const C* update, int64_t count, C threshold, C inverse_temperature,
                                   T* out) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j)
    store(out[j], load(weight[j]) + gated<kind>(update[j], threshold, inverse_temperature));
}

template <Gate kind, class T, class C>
static double reconstruct_backward_as(const T* dout, int64_t count, C threshold, C inverse_temperature, C* update) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) {
    GateSlopes<C> slopes = gate_slopes<kind>(update[j], threshold, inverse_temperature);
    C d = load(dout[j]);
    sum += d * slopes.threshold;
    update[j] = d * slopes.value;
  }
  return sum;
}

template <class T, class C>
static void reconstruct_forward(Gate gate, const T* weight, const C* update, int64_t count, C threshold,
                                C inverse_temperature, T* out) {
  with_gate(gate, [=]<Gate kind>() {
    reconstruct_forward_as<kind>(weight, update, count, threshold, inverse_temperature, out);
  });
}

template <class T, class C>
static double reconstruct_backward(Gate gate, const T* dout, int64_t count, C threshold, C inverse_temperature,
                                   C* update) {
  return with_gate(gate, [=]<Gate kind>() {
    return reconstruct_backward_as<kind>(dout, count, threshold, inverse_temperature, update);
  });
}

template <class T>
static ReconstructRows<T> reconstruct_rows() {
  return {reconstruct_forward<T, Compute<T>>, reconstruct_backward<T, Compute<T>>};
}
