// The dropout mask, compiled once per instruction set (foreach_isa.h).

// The mask's values, 0 or 1 / (1 - p), of elements [first, first + count) of a tensor (kernels/philox.h). They lie
// inside `words`, which holds count + 8 values.
template <class C>
static inline const C* dropout_mask(uint64_t seed, uint64_t first, int64_t count, double dropout, C* words) {
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
