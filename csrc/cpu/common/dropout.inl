// The dropout mask, compiled once per instruction set (foreach_isa.h).
//
// Philox on vectors of 64-bit lanes, a counter in each: a product of 32-bit words fills a lane, so that its lower word
// need not be taken out, and its upper one is a shift away. What lies in a lane's upper half is of no account until the
// last round's words are put side by side. A compiler makes twice as many instructions of kernels/philox.h.

#if PETX_ISA_IS(avx512)
#define PETX_LANES 8
struct PhiloxLanes {
  using V = __m512i;
  static V all(uint64_t value) { return _mm512_set1_epi64(static_cast<int64_t>(value)); }
  static V counters(uint64_t first) { return _mm512_add_epi64(all(first), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0)); }
  static V product(V a, V b) { return _mm512_mul_epu32(a, b); }
  static V upper(V a) { return _mm512_srli_epi64(a, 32); }
  static V mix(V a, V b) { return _mm512_xor_si512(a, b); }
  static V beside(V even, V odd) { return _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA); }
  static void keep(V words, V least, __m512 value, float* to) {
    _mm512_storeu_ps(to, _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(words, least), value));
  }
  // a, b: words 0, 1 and words 2, 3 of each counter. `least`: the smallest word that is kept, in all words.
  static void store(V a, V b, uint32_t least, float kept, float* to) {
    V even = _mm512_unpacklo_epi64(a, b), odd = _mm512_unpackhi_epi64(a, b);
    V first = _mm512_permutex2var_epi64(even, _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), odd);
    V last = _mm512_permutex2var_epi64(even, _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4), odd);
    V bound = _mm512_set1_epi32(static_cast<int32_t>(least));
    keep(first, bound, _mm512_set1_ps(kept), to), keep(last, bound, _mm512_set1_ps(kept), to + 16);
  }
};
#elif PETX_ISA_IS(avx2)
#define PETX_LANES 4
struct PhiloxLanes {
  using V = __m256i;
  static V all(uint64_t value) { return _mm256_set1_epi64x(static_cast<int64_t>(value)); }
  static V counters(uint64_t first) { return _mm256_add_epi64(all(first), _mm256_set_epi64x(3, 2, 1, 0)); }
  static V product(V a, V b) { return _mm256_mul_epu32(a, b); }
  static V upper(V a) { return _mm256_srli_epi64(a, 32); }
  static V mix(V a, V b) { return _mm256_xor_si256(a, b); }
  static V beside(V even, V odd) { return _mm256_blend_epi32(even, _mm256_shuffle_epi32(odd, 0xA0), 0xAA); }
  static void keep(V words, V least, __m256 value, float* to) {
    V is_kept = _mm256_cmpeq_epi32(_mm256_max_epu32(words, least), words);
    _mm256_storeu_ps(to, _mm256_and_ps(_mm256_castsi256_ps(is_kept), value));
  }
  static void store(V a, V b, uint32_t least, float kept, float* to) {
    V even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
    V bound = _mm256_set1_epi32(static_cast<int32_t>(least));
    keep(_mm256_permute2x128_si256(even, odd, 0x20), bound, _mm256_set1_ps(kept), to);
    keep(_mm256_permute2x128_si256(even, odd, 0x31), bound, _mm256_set1_ps(kept), to + 8);
  }
};
#else
#define PETX_LANES 0
#endif

#if PETX_LANES
// The mask's values for `counters` of Philox's counters from `begin` on, a multiple of PETX_LANES.
static inline void dropout_lanes(uint64_t seed, uint64_t begin, uint64_t counters, uint32_t threshold, float keep,
                                 float* to) {
  using L = PhiloxLanes;
  typename L::V m0 = L::all(0xD2511F53u), m1 = L::all(0xCD9E8D57u), k0[7], k1[7];
  for (uint32_t round = 0; round < 7; ++round) {
    k0[round] = L::all(static_cast<uint32_t>(seed) + round * 0x9E3779B9u);
    k1[round] = L::all(static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u);
  }
  for (uint64_t k = 0; k < counters; k += PETX_LANES, to += 4 * PETX_LANES) {
    // The first round, whose words 2 and 3 are zeros.
    typename L::V counter = L::counters(begin + k), p0 = L::product(counter, m0);
    typename L::V c0 = L::mix(L::upper(counter), k0[0]), c1 = L::all(0), c2 = L::mix(L::upper(p0), k1[0]), c3 = p0;
#pragma GCC unroll 6
    for (int round = 1; round < 7; ++round) {
      p0 = L::product(c0, m0);
      typename L::V p1 = L::product(c2, m1);
      c0 = L::mix(L::mix(L::upper(p1), c1), k0[round]), c2 = L::mix(L::mix(L::upper(p0), c3), k1[round]);
      c1 = p1, c3 = p0;
    }
    L::store(L::beside(c0, c1), L::beside(c2, c3), threshold << 8, keep, to);
  }
}
#endif

// The mask's values, 0 or 1 / (1 - p), of elements [first, first + count) of a tensor (kernels/philox.h). They lie
// inside `words`, which holds count + 8 values.
template <class C>
static inline const C* dropout_mask(uint64_t seed, uint64_t first, int64_t count, double dropout, C* words) {
  uint64_t begin = first / 4, counters = (first + count + 3) / 4 - begin, done = 0;
  uint32_t threshold = dropout_threshold(dropout);
  C keep = C(1.0 / (1.0 - dropout));
#if PETX_LANES
  if constexpr (std::is_same_v<C, float>) {
    done = counters / PETX_LANES * PETX_LANES;
    dropout_lanes(seed, begin, done, threshold, keep, words);
  }
#endif
#pragma omp simd
  for (uint64_t k = done; k < counters; ++k) {
    Philox4 random = philox(seed, begin + k);
    words[4 * k + 0] = (random.word[0] >> 8) >= threshold ? keep : C(0);
    words[4 * k + 1] = (random.word[1] >> 8) >= threshold ? keep : C(0);
    words[4 * k + 2] = (random.word[2] >> 8) >= threshold ? keep : C(0);
    words[4 * k + 3] = (random.word[3] >> 8) >= threshold ? keep : C(0);
  }
  return words + (first - 4 * begin);
}
#undef PETX_LANES
