// Memory and work division for CPU kernels.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/types.h"

namespace petx::cpu {

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};

// 64-byte aligned, so that a GEMM's blocking, and with it its rounding, does not depend on the address.
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> buffer(int64_t count) {
  size_t bytes = (static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T) + 63) / 64 * 64;
  void* pointer = std::aligned_alloc(64, bytes);
  if (!pointer) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(pointer));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows in consecutive parts of `size`, the last one perhaps shorter.
struct Division {
  int64_t rows, size;
  int64_t parts() const { return ceil_div(rows, size); }
  int64_t begin(int64_t part) const { return std::min(part * size, rows); }
};

// `rows` in about `parts` equal parts of at least 32 and at most `most` rows, a multiple of 8, which products favour.
inline Division divide(int64_t rows, int64_t parts, int64_t most) {
  return {rows, std::clamp<int64_t>(ceil_div(rows, 8 * parts) * 8, 32, most)};
}

// Both divisions are functions of the shape alone, so results do not depend on the number of threads.
//
// Row blocks: large enough that a GEMM amortises its packing, small enough to stay in cache and to leave every core
// something to do. Few rows stay in one block, whose GEMMs are split by columns (kernels/host.h), since a GEMM packs
// its weights again for each block.
inline constexpr int64_t kFewRows = 128;
inline Division row_blocks(int64_t rows, int64_t most) {
  if (rows < kFewRows) return divide(rows, 1, most);
  int64_t even = std::clamp<int64_t>(rows / 128 * 2, 2, 8);  // for two threads at least
  return divide(rows, rows <= even * most ? even : ceil_div(rows, 4 * most) * 4, most);
}

// Token splits for sums over rows (weight gradients): each split has its own accumulators, added up in order.
inline Division row_splits(int64_t rows, int64_t few = kFewRows) {
  return divide(rows, rows < few ? 1 : std::clamp<int64_t>(2 * ((rows + 512) / 1024), 2, 32), rows + 32);
}

}  // namespace petx::cpu
