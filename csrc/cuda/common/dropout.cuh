// Dropout by kernels/philox.h, as kernels apply it to runs of consecutive values.
#pragma once

#include "cuda/common/primitives.cuh"
#include "kernels/philox.h"

namespace petx::cuda {

// Which of a run of values are kept: those whose words reach `least`.
template <int size>
struct KeptRun {
  uint32_t word[size], least;
  PETX_DEVICE bool keeps(int j) const { return word[j] >= least; }
};

// What p comes to, made once on the host and handed to the kernel, which then computes nothing in double.
template <class C>
struct Dropout {
  const int64_t* seed;  // null: nothing is dropped
  uint32_t least;       // a word below it drops its value; of the word only the upper 24 bits count
  C keep;               // what the others are multiplied by, 1 / (1 - p)

  PETX_HD Dropout(double p, const int64_t* seed)
      : seed(p > 0 ? seed : nullptr), least(dropout_threshold(p) << 8), keep(C(1.0 / (1.0 - p))) {}

  PETX_HD bool drops() const { return seed != nullptr; }

  // For whom has a register for it; 0 if nothing is dropped.
  PETX_DEVICE uint64_t seed_value() const { return drops() ? static_cast<uint64_t>(read(seed)) : 0; }

  // factor[j] = 0 or `keep`, of the values from `element` on.
  template <int size>
  PETX_DEVICE void factors(C (&factor)[size], uint64_t element) const {
    factors(factor, element, seed_value());
  }
  template <int size>
  PETX_DEVICE void factors(C (&factor)[size], uint64_t element, uint64_t value) const {
    Words<size> words = draw<size>(element, value);
#pragma unroll
    for (int j = 0; j < size; ++j) factor[j] = words.word[j] >= least ? keep : C(0);
  }

  // Of the values from `element` on; `whole`: where that is a multiple of `size`.
  template <int size, bool whole>
  PETX_DEVICE KeptRun<size> kept(uint64_t element, uint64_t value) const {
    KeptRun<size> found;
    found.least = least;
    if (!drops()) {
#pragma unroll
      for (int j = 0; j < size; ++j) found.word[j] = ~0u;
    } else if constexpr (whole && size % 4 == 0) {
      const uint64_t first = element / 4;
#pragma unroll
      for (int n = 0; n < size / 4; ++n) {
        const Philox4 four = philox(value, first + n);
#pragma unroll
        for (int i = 0; i < 4; ++i) found.word[4 * n + i] = four.word[i];
      }
    } else {
      const Words<size> words = draw<size>(element, value);
#pragma unroll
      for (int j = 0; j < size; ++j) found.word[j] = words.word[j];
    }
    return found;
  }

 private:
  template <int size>
  struct Words {
    static constexpr int kCounters = (size + 3) / 4;
    uint32_t word[4 * kCounters + 4] = {};

    PETX_DEVICE void put(int counter, const Philox4& from) {
#pragma unroll
      for (int i = 0; i < 4; ++i) word[4 * counter + i] = from.word[i];
    }
    template <int by>
    PETX_DEVICE void skip() {
#pragma unroll
      for (int i = 0; i + by < 4 * kCounters + 4; ++i) word[i] = word[i + by];
    }
  };

  // The words of `size` values. Four have one counter; a run that begins amid them reaches into one counter more.
  template <int size>
  PETX_DEVICE static Words<size> draw(uint64_t element, uint64_t value) {
    constexpr int kCounters = Words<size>::kCounters;
    Words<size> words;
#pragma unroll
    for (int n = 0; n < kCounters; ++n) words.put(n, philox(value, element / 4 + n));
    if (element % 4) {
      words.put(kCounters, philox(value, element / 4 + kCounters));
      if (element & 1) words.template skip<1>();
      if (element & 2) words.template skip<2>();
    }
    return words;
  }
};

}  // namespace petx::cuda
