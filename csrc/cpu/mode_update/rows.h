// What the drivers of mode_update (mode_update/forward.cpp, mode_update/backward.cpp) and its row loops agree on.
//
// T is the storage type of the tensors, G the type matrix products run in, C the compute type. A block of rows is
// dense, so most loops run over its values as one vector; `mask` is null without dropout.
#pragma once

#include "kernels/types.h"

namespace petx::cpu {

template <class T, class G>
struct ModeUpdateLoops {
  using C = Compute<T>;
  // The mask's values, 0 or 1 / (1 - p), of elements [first, first + count). They lie inside `words`, which holds
  // count + 8 values.
  const C* (*mask)(uint64_t seed, uint64_t first, int64_t count, double dropout, C* words);
  // to = h * mask.
  void (*keep)(const T* h, const C* mask, int64_t count, G* to);
  // to = from * a row of scales.
  void (*scale)(const G* from, const C* scales, int64_t rows, int64_t rank, G* to);
  // y = base + product, whose rows are `width` values; those of `base` lie `stride` apart.
  void (*add)(const T* base, int64_t stride, const G* product, int64_t rows, int64_t width, T* y);
  // sum = part * mask, or sum += part * mask.
  void (*take)(const G* part, const C* mask, int64_t count, C* sum);
  void (*take_more)(const G* part, const C* mask, int64_t count, C* sum);
  // sum[j] += sum over rows of a[., j] b[., j].
  void (*dots)(const G* a, const G* b, int64_t rows, int64_t rank, C* sum);
};

// Defined in mode_update/loops.cpp for the pairs that with_types (products.h) names.
template <class T, class G>
const ModeUpdateLoops<T, G>& mode_update_loops();

}  // namespace petx::cpu
