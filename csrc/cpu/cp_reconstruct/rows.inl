// Loops of cp_reconstruct/rows.h, compiled once per instruction set (foreach_isa.h).

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

// A byte of sides has the bits of four values a quarter apart; those of the first `full` bytes are all there.
struct Quarters {
  int64_t bytes, full;
  explicit Quarters(int64_t count)
      : bytes((count + kSides - 1) / kSides), full(count > 3 * bytes ? count - 3 * bytes : 0) {}
};

template <class C>
static void reconstruct_sides(Gate gate, const C* update, int64_t count, C threshold, uint8_t* sides) {
  const Quarters quarters(count);
  const int64_t n = quarters.bytes;
  const bool keeps_none = gate == Gate::hard && threshold != threshold;  // as in gate_slopes
  const C high = threshold > C(0) || keeps_none ? threshold : C(0), low = -high;
  const auto side = [=](C c, int bit) { return (c > high ? bit : 0) | (c < low ? 2 * bit : 0); };
#pragma omp simd
  for (int64_t j = 0; j < quarters.full; ++j) {
    const C* at = update + j;
    sides[j] = uint8_t(side(at[0], 1) | side(at[n], 4) | side(at[2 * n], 16) | side(at[3 * n], 64));
  }
  for (int64_t j = quarters.full; j < n; ++j) {
    sides[j] = 0;
    for (int64_t i = j, bit = 1; i < count; i += n, bit *= 4) sides[j] |= uint8_t(side(update[i], bit));
  }
}

template <Gate kind, class T, class C>
static double reconstruct_backward_of_sides_as(const T* dout, int64_t count, const uint8_t* sides, C* dupdate) {
  const Quarters quarters(count);
  const int64_t n = quarters.bytes;
  C sum = 0;                                   // of one piece of a row
  const auto one = [=](int64_t i, int bits) {  // the threshold's
    C d = load(dout[i]), side = C((bits >> 1 & 1) - (bits & 1)), slope = d * side;
    dupdate[i] = kind == Gate::hard ? d : slope * side;
    return slope;
  };
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < quarters.full; ++j) {
    int bits = sides[j];
    sum += one(j, bits) + one(j + n, bits >> 2) + one(j + 2 * n, bits >> 4) + one(j + 3 * n, bits >> 6);
  }
  for (int64_t j = quarters.full; j < n; ++j)
    for (int64_t i = j, shift = 0; i < count; i += n, shift += 2) sum += one(i, sides[j] >> shift);
  return sum;
}

template <class T, class C>
static double reconstruct_backward_of_sides(Gate gate, const T* dout, int64_t count, const uint8_t* sides, C* dupdate) {
  return gate == Gate::hard ? reconstruct_backward_of_sides_as<Gate::hard>(dout, count, sides, dupdate)
                            : reconstruct_backward_of_sides_as<Gate::soft>(dout, count, sides, dupdate);
}

template <class T>
static CpReconstructLoops<T> loops_for() {
  using C = Compute<T>;
  return {reconstruct_forward<T, C>, reconstruct_backward<T, C>, reconstruct_sides<C>,
          reconstruct_backward_of_sides<T, C>};
}
