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
  if (gate == Gate::soft) {
    reconstruct_forward_as<Gate::soft>(weight, update, count, threshold, inverse_temperature, out);
  } else if (gate == Gate::hard) {
    reconstruct_forward_as<Gate::hard>(weight, update, count, threshold, inverse_temperature, out);
  } else if (gate == Gate::sigmoid) {
    reconstruct_forward_as<Gate::sigmoid>(weight, update, count, threshold, inverse_temperature, out);
  } else {
    reconstruct_forward_as<Gate::none>(weight, update, count, threshold, inverse_temperature, out);
  }
}

template <class T, class C>
static double reconstruct_backward(Gate gate, const T* dout, int64_t count, C threshold, C inverse_temperature,
                                   C* update) {
  if (gate == Gate::soft)
    return reconstruct_backward_as<Gate::soft>(dout, count, threshold, inverse_temperature, update);
  if (gate == Gate::hard)
    return reconstruct_backward_as<Gate::hard>(dout, count, threshold, inverse_temperature, update);
  return reconstruct_backward_as<Gate::sigmoid>(dout, count, threshold, inverse_temperature, update);
}

template <class T>
static ReconstructRows<T> reconstruct_rows() {
  return {reconstruct_forward<T, Compute<T>>, reconstruct_backward<T, Compute<T>>};
}
