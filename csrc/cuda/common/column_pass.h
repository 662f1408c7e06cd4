// How blocks share a pass over a tensor [N, width] of which no row has to be whole: a block of 256 threads takes 128
// bytes of columns, in runs of sixteen by eight lanes, and a split of the rows, 32 at a time.
#pragma once

#include "cuda/common/plan.h"

namespace petx::cuda {

// Three blocks leave 80 registers: a run of each of a few tensors, and of a sum and of a vector that stay.
constexpr Launch kPassLaunch = {kSumLaunch.threads, 3};

struct ColumnPass {
  static constexpr int kLanes = 8, kRowsAtOnce = kSumLaunch.threads / kLanes;

  int64_t across;        // blocks along the columns
  int64_t size, splits;  // rows of a split

  // For an H100's multiprocessors that run `side_by_side` blocks each at a time.
  ColumnPass(DType dtype, int64_t all_rows, int64_t width, int64_t side_by_side) {
    const int64_t columns = kLanes * 16 / (dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2);
    across = (width + columns - 1) / columns;
    // Two rows a thread at least, for which it loads the vectors once; more where that would be more blocks than an
    // H100 runs at a time, since each leaves sums that are written and read again.
    const int64_t least = 2 * kRowsAtOnce, blocks = kMultiprocessors * side_by_side;
    int64_t rows = (all_rows * across + blocks - 1) / blocks;
    if (rows < least) rows = least;
    const int64_t wanted = env_int_or("PETX_CUDA_SPLITS", 0, 65535);
    if (wanted && all_rows) rows = (all_rows + wanted - 1) / wanted;
    size = (rows + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce;
    splits = (all_rows + size - 1) / size;
  }
  int64_t blocks() const { return across * splits; }
};

}  // namespace petx::cuda
