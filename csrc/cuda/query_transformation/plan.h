// How a call of query_transformation is launched: a block of 256 threads takes 128 bytes of columns, in runs of sixteen
// by eight lanes, and a split of the rows, 32 at a time.
#pragma once

#include "cuda/common/plan.h"
#include "kernels/query_transformation.h"

namespace petx::cuda {

struct QueryTransformationPlan {
  static constexpr int kLanes = 8, kRowsAtOnce = kSumLaunch.threads / kLanes;

  int64_t across;        // blocks along the columns
  int64_t size, splits;  // rows of a split

  explicit QueryTransformationPlan(const QueryTransformationParams& p) : across(0), size(0), splits(0) {
    const int64_t columns = kLanes * 16 / (p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2);
    across = (p.width + columns - 1) / columns;
    // Two rows a thread at least, for which it loads the vectors once; more where that would be more blocks than an
    // H100 runs at a time, since each leaves sums that are written and read again.
    constexpr int64_t kLeast = 2 * kRowsAtOnce, kBlocks = kMultiprocessors * kSumLaunch.blocks;
    int64_t rows = (p.rows * across + kBlocks - 1) / kBlocks;
    if (rows < kLeast) rows = kLeast;
    const int64_t wanted = env_int_or("PETX_CUDA_SPLITS", 0, 65535);
    if (wanted && p.rows) rows = (p.rows + wanted - 1) / wanted;
    size = (rows + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce;
    splits = (p.rows + size - 1) / size;
  }
  int64_t blocks() const { return across * splits; }
};

}  // namespace petx::cuda
